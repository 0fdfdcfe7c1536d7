"""`volseg segment`, twice in one process: the second time the kernels are compiled, and what is timed is the network.

    mpirun -n 2 python -m volseg.cli.segment_twice REPORT REPORT_OF_THE_SECOND SCAN [options of volseg segment]

Not a command: `volseg study` starts it by name. The compilation takes a second or two whatever the volume, and on
volumes that a study can afford that is as long as the network itself. The peak memory is that of the first report.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from volseg.cli.app import run


def main(arguments: Sequence[str]) -> int:
    """Run both, and return the exit code."""
    first, second, *options = arguments
    return run(["segment", *options, "--report", first]) or run(["segment", *options, "--report", second])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
