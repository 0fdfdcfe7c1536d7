"""`volseg segment` several times in one process: after the first, kernels are compiled, and the network alone is timed.

    mpirun -n 2 python -m volseg.cli.segment_again 4 FOLDER SCAN [options of volseg segment]

Not a command: `volseg study` starts it by name. It writes the reports 0.json, 1.json ... into the folder. The
compilation takes a second or two whatever the volume, and on volumes that a study can afford that is as long as the
network itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from volseg.cli.app import run


def main(arguments: Sequence[str]) -> int:
    """Run them until one fails, and return the exit code."""
    times, folder, *options = arguments
    codes = (run(["segment", *options, "--report", str(Path(folder) / f"{n}.json")]) for n in range(int(times)))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
