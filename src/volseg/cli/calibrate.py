"""``volseg calibrate``: measure this machine, so that plans know how long things take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, NoProgress, Quiet


def calibrate(
    output: Annotated[Path, typer.Option("--output", "-o", help="The profile, JSON.")] = Path("volseg-profile.json"),
    setting_only: Annotated[
        bool, typer.Option("--setting-only", help="Only as this job is: its ranks and threads.")
    ] = False,
    launcher: Annotated[
        str | None, typer.Option(help="How to start ranks, such as 'srun -n {ranks}'.  [default: mpirun, or srun]")
    ] = None,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Measure this machine: convolutions by shape, memory, and messages between ranks, in two or three minutes.

    The profile makes plan-partition, train and segment foretell times; what is measured is kept beside what the file
    has of the same machine. Started under mpirun or srun it measures that job, across machines too.
    """
    os.environ.pop("VOLSEG_PROFILE", None)  # it may be the file that is to be made
    with job(quiet, no_progress, debug) as work:
        from volseg.partition.profile import save_profile
        from volseg.study.calibration import calibrate as measure
        from volseg.study.calibration import known_profiles, measure_settings, merge
        from volseg.study.launching import find_launcher
        from volseg.study.profile_text import profile_lines

        if work.communicator.size > 1 or setting_only:
            found = [measure(work.communicator, work.listen)]
        else:
            found = measure_settings(find_launcher(launcher), work.listen)
        profile = None
        with work.communicator.together():
            if work.communicator.is_root:
                profile = merge([*known_profiles(output, found[-1]), *found])
                output.parent.mkdir(parents=True, exist_ok=True)
                save_profile(profile, output)
        if profile is not None:
            for line in profile_lines(profile):
                work.print(line)
            work.print(f"profile: {output}")
