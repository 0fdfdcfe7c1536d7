"""``volseg study``: memory and time over sizes, channels and ranks, measured and foretold."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volseg.cli.options import Debug, NoProgress, Overwrite, Quiet
from volseg.errors import ConfigError

if TYPE_CHECKING:
    from volseg.cli.render import Screen
    from volseg.study.study import Outcome


class What(StrEnum):
    """What is studied."""

    memory = "memory"
    channels = "channels"
    scaling = "scaling"
    all = "all"


def study(
    what: Annotated[What, typer.Argument(help="memory, channels, scaling, or all.")] = What.all,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study.")] = Path("volseg-study"),
    sides: Annotated[
        str | None, typer.Option(help="Sides of the volumes, such as 48,64,96.  [default: what there is time for]")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Channels at full resolution.  [default: 8,16; of channels 4,8,16,32]")
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(help="Numbers of ranks, such as 1,2,4.  [default: to twice the cores, or the job's]"),
    ] = None,
    levels: Annotated[int, typer.Option(help="Halvings of the resolution.")] = 3,
    minutes: Annotated[float, typer.Option(help="Time for everything; what does not fit is left out.")] = 20.0,
    profile: Annotated[
        Path | None,
        typer.Option(help="Machine, of volseg calibrate.  [default: this machine's, or it is measured first]"),
    ] = None,
    launcher: Annotated[
        str | None, typer.Option(help="How to start ranks, such as 'srun -n {ranks}'.  [default: mpirun, or srun]")
    ] = None,
    proceed: Annotated[bool, typer.Option("--continue", help="Keep the cases that are done, and go on.")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Run the program over a range of sizes, channels and ranks, and lay the model beside what was measured.

    Writes report.html with everything in it, the figures, and measurements.csv. Curves go on to 16384 ranks and 4096³
    voxels. In a batch job the same command runs the large cases for real.
    """
    from volseg.api import run_study
    from volseg.cli.render import Screen
    from volseg.messages import MessageLog

    screen = Screen(quiet=quiet, progress=not (quiet or no_progress))
    try:
        outcome = run_study(
            what.value, output, sides=_numbers(sides, "--sides"), channels=_numbers(channels, "--channels"),
            ranks=_numbers(ranks, "--ranks"), levels=levels, minutes=minutes, profile=profile, launcher=launcher,
            proceed=proceed, overwrite=overwrite, listen=screen.draw,
        )  # fmt: skip
        screen.log = MessageLog.going_on(output)
        _show(screen, outcome, output)
    finally:
        screen.close()
    if not any(row.done for row in outcome.rows):
        raise typer.Exit(1)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    """``48,64,96`` as numbers, ascending. Raises ConfigError for anything else."""
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"{option} {text}: give whole numbers with commas, such as 1,2,4")
    return tuple(sorted({int(word) for word in words}))


def _show(screen: Screen, outcome: Outcome, output: Path) -> None:
    """What it came to."""
    from volseg.cli.render import table
    from volseg.study.summary import case_text

    rows = [
        [one.what, one.count, f"{one.median:.1%}", f"{abs(one.worst - 1):.1%}", case_text(one.worst_row.case)]
        for one in outcome.agreed
    ]
    if rows:
        screen.tell(table("planned against measured", ["", "rows", "median off", "worst off", "worst row"], rows))
    for sentence in outcome.said:
        screen.tell(sentence)
    failed = sum(not row.done for row in outcome.rows)
    done = len(outcome.rows) - failed
    screen.tell(f"{done} cases done, {failed} failed, {len(outcome.left)} left out")
    for path in outcome.files:
        screen.tell(f"wrote {output / path.name}")
