"""volseg in Python: what the commands do, one call each, with the commands' names and defaults.

    import volseg

    volseg.generate("ellipsoids", cases=4)
    report = volseg.train("ellipsoids", "run", epochs=10)
    volseg.segment("scan.nii.gz", model="run")

Under mpirun the same script runs on all ranks, which share the work; without, in one process. What the user gave wrong
raises a VolsegError, on all ranks. Every function takes `listen`, which gets progress and messages (`volseg.events`).
Importing this starts neither torch nor MPI; the first call that needs them does.
"""

from volseg.api.bringing import export, import_model
from volseg.api.data import check, generate, info, ingest
from volseg.api.models import evaluate, segment, train, verify_partition
from volseg.api.planning import calibrate, plan_partition, run_study
from volseg.api.ranks import all_ranks

__all__ = [
    "all_ranks", "calibrate", "check", "evaluate", "export", "generate", "import_model", "info", "ingest",
    "plan_partition", "run_study", "segment", "train", "verify_partition",
]  # fmt: skip
