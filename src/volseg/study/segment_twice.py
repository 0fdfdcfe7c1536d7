"""`volseg segment`, twice in one process: the second time the kernels are compiled, and what is timed is the network.

    mpirun -n 2 python -m volseg.study.segment_twice SCAN MASK MODEL SCHEDULE REPORT REPORT_OF_THE_SECOND

The compilation takes a second or two, whatever the volume, and on volumes that a study can afford that is as long as
the network itself. The peak memory is that of the first report.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from volseg.distributed.launch import connect, cores_per_rank
from volseg.distributed.placement import place
from volseg.machine import prepare_for_torch


def main(arguments: Sequence[str]) -> None:
    """Run both. Collective; ends all ranks where one fails."""
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank()))
    prepare_for_torch()
    communicator = connect()
    place(communicator)
    from volseg.distributed.ending import end_failed_job
    from volseg.partition.schedule import Schedule
    from volseg.segmentation.job import SegmentationJob
    from volseg.segmentation.segment import segment

    scan, mask, model, schedule, *reports = arguments
    try:
        for report in reports:
            job = SegmentationJob(
                Path(scan), Path(model), Path(mask), report=Path(report), overwrite=True, schedule=Schedule(schedule)
            )
            segment(job, communicator)
    except Exception as error:
        end_failed_job(communicator, 1, f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
