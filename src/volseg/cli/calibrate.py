"""``volseg calibrate``: measure this machine, so that plans know how long things take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, NoProgress, Precision, PrecisionName, Quiet


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile, JSON.")] = Path("volseg-profile.json"),
    setting_only: Annotated[
        bool, typer.Option("--setting-only", help="Only as this job is: its ranks and threads.")
    ] = False,
    launcher: Annotated[
        str | None, typer.Option(help="How to start ranks, such as 'srun -n {ranks}'.  [default: mpirun, or srun]")
    ] = None,
    precision: Precision = PrecisionName.auto,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Measure this machine: convolutions by shape, memory, and messages between ranks, in two or three minutes.

    The profile makes plan-partition, train and segment foretell times; what is measured is kept beside what the file
    has of the same machine. Started under mpirun or srun it measures that job, across machines too.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.api import calibrate as measure
        from volseg.study.profile_text import profile_lines

        profile = measure(
            output, setting_only=setting_only, launcher=launcher, precision=precision.value,
            communicator=work.communicator, listen=work.listen,
        )  # fmt: skip
        for line in profile_lines(profile):
            work.tell(line)
        work.tell(f"profile: {output}")
