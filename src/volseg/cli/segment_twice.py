"""`volseg segment`, twice in one process: the second time the kernels are compiled, and what is timed is the network.

    mpirun -n 2 python -m volseg.cli.segment_twice SCAN MASK MODEL SCHEDULE REPORT REPORT_OF_THE_SECOND

Not a command: `volseg study` starts it by name. The compilation takes a second or two whatever the volume, and on volumes
that a study can afford that is as long as the network itself. The peak memory is that of the first report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from volseg.cli.job import job


def main(arguments: Sequence[str]) -> None:
    """Run both. Collective; ends all ranks where one fails."""
    with job(quiet=True) as work:
        from volseg.partition.schedule import Schedule
        from volseg.segmentation.job import SegmentationJob
        from volseg.segmentation.segment import segment

        scan, mask, model, schedule, *reports = arguments
        for report in reports:
            settings = SegmentationJob(
                Path(scan), Path(model), Path(mask), report=Path(report), overwrite=True, schedule=Schedule(schedule)
            )
            segment(settings, work.communicator, work.listen)


if __name__ == "__main__":
    main(sys.argv[1:])
