"""A study from beginning to end: what is run, what is kept, what is drawn and written."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from volseg import __version__
from volseg.errors import ConfigError, PartitionError, VolsegError
from volseg.events import Listener, Message, ignore
from volseg.files import write_text
from volseg.machine import gibibytes
from volseg.messages import MESSAGES, MessageLog
from volseg.planning.profile import Profile, find_profile, read_profile, save_profile
from volseg.study.cases import PARTS, Ranges, cases_of, rank_of_need
from volseg.study.extrapolation import LARGEST_SIDE, foretell
from volseg.study.figures import draw, figures_of
from volseg.study.html_report import FILE as REPORT
from volseg.study.html_report import html_report
from volseg.study.launching import Launcher, find_launcher
from volseg.study.means import Means, find_means, ranks_up_to
from volseg.study.rows import FILE as ROWS
from volseg.study.rows import Row, is_table, planned, read_rows, write_rows
from volseg.study.runs import Left, Runner, expected, reachable
from volseg.study.summary import Agreement, agreements, sentences
from volseg.study.view import View

PROFILE, WORK, CURVES = "profile.json", "study-work", "model.csv"
DRAWING = 40.0
"""Seconds that are left for figures and report."""

_USED = 0.8
"""Of the time, sizes are chosen to take so much by the model; the rest is for what it does not know."""

_LARGEST_SIDES = (48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; empty or None where the study is to choose.

    what      "memory", "channels", "scaling" or "all"
    minutes   for everything, calibration and drawing included
    profile   file of volseg calibrate
    launcher  how to start ranks
    proceed   keep the rows that are there
    """

    what: str
    folder: Path
    sides: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()
    levels: int = 3
    minutes: float = 20.0
    profile: Path | None = None
    launcher: str | None = None
    proceed: bool = False
    overwrite: bool = False
    command: str = "volseg study"

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the study."""
        return PARTS if self.what == "all" else (self.what,)


@dataclass(frozen=True)
class Outcome:
    """What a study leaves.

    agreed  planned against measured
    files   that were written
    """

    rows: Sequence[Row]
    left: Sequence[Left]
    agreed: Sequence[Agreement]
    said: Sequence[str]
    files: Sequence[Path]


def run_study(wishes: Wishes, listen: Listener = ignore, means: Means | None = None) -> Outcome:
    """Run it. An interrupted study keeps every row that was finished.

    Raises VolsegError where the wishes cannot be met, or the folder has another study in it.
    """
    deadline = time.monotonic() + 60 * wishes.minutes - DRAWING
    means = means or find_means()
    launcher = find_launcher(wishes.launcher)
    _check(wishes, launcher)
    log = MessageLog(wishes.folder, listen)
    log.begin(f"volseg {__version__}: {wishes.command}", anew=not wishes.proceed)
    try:
        return _run(wishes, means, launcher, deadline, log.listen)
    except BaseException as error:
        log.failed(error)
        raise


def _run(wishes: Wishes, means: Means, launcher: Launcher | None, deadline: float, listen: Listener) -> Outcome:
    profile = _profile(wishes, launcher, means, listen)
    rows = {row.case: row for row in read_rows(wishes.folder / ROWS)}
    shutil.rmtree(wishes.folder / WORK, ignore_errors=True)  # what an interrupted study left may be half-written
    remaining = max(0.0, deadline - time.monotonic())
    ranges = choose_ranges(wishes, profile, means, remaining, launcher is not None)
    cases, left = reachable(cases_of(wishes.parts, ranges), profile, means)
    cases.sort(key=lambda case: rank_of_need(case, ranges))  # of each rank the quickest first, as they are
    done = {case for case, row in rows.items() if row.done}
    runner = Runner(
        folder=wishes.folder / WORK, profile=profile, means=means, launcher=launcher, deadline=deadline, listen=listen
    )

    def keep(row: Row) -> None:
        rows[row.case] = row
        write_rows(wishes.folder / ROWS, list(rows.values()))

    left += runner.run([case for case in cases if case not in done], keep)
    shutil.rmtree(wishes.folder / WORK, ignore_errors=True)
    for one in left:
        listen(Message(f"left out: {one.case.name}: {one.why}"))
    return _report(wishes, [_planned(row, profile, means) for row in rows.values()], left, ranges, profile, means)


def _planned(row: Row, profile: Profile, means: Means) -> Row:
    """With the times of this profile, also where a row is from before."""
    try:
        return planned(row, foretell(row.case, profile, means.cores_per_node))
    except PartitionError:  # a case that failed for just that
        return row


def _check(wishes: Wishes, launcher: Launcher | None) -> None:
    """Raise ConfigError for wishes that cannot be met, and make the folder."""
    if wishes.what not in ("all", *PARTS):
        raise ConfigError(f"{wishes.what}: no such study; give memory, channels, scaling or all")
    if not 0 <= wishes.levels <= 6:
        raise ConfigError(f"--levels {wishes.levels}: give 0 to 6")
    if not wishes.minutes > DRAWING / 60:
        raise ConfigError(f"--minutes {wishes.minutes:g}: give more than {DRAWING / 60:.1f}, which drawing takes")
    for side in wishes.sides:
        if not 2**wishes.levels <= side <= LARGEST_SIDE:
            raise ConfigError(f"--sides {side}: give {2**wishes.levels} (2^levels) to {LARGEST_SIDE} voxels")
    for count in wishes.channels:
        if not 1 <= count <= 320:
            raise ConfigError(f"--channels {count}: give 1 to 320")
    if launcher is None and max(wishes.ranks, default=1) > 1:
        raise ConfigError("no mpirun found to start ranks with: install mpich, or name one with --launcher")
    folder = wishes.folder
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is no folder")
    if folder.is_dir() and any(folder.iterdir()) and not (wishes.proceed or wishes.overwrite):
        raise ConfigError(f"{folder}: is there already; give --continue to go on with it, or --overwrite")
    if folder.is_dir() and any(folder.iterdir()) and not _is_study(folder):
        raise ConfigError(
            f"{folder}: holds files and is no study of volseg (no {ROWS} or {PROFILE} of one): it is left alone; "
            "give another --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); choose another --output") from None
    if wishes.overwrite and not wishes.proceed:
        _clear(folder)


def _is_study(folder: Path) -> bool:
    """Whether a study was begun there."""
    if is_table(folder / ROWS):
        return True
    try:
        return (folder / PROFILE).is_file() and bool(read_profile(folder / PROFILE))
    except VolsegError:
        return False


def _clear(folder: Path) -> None:
    """Remove what a study leaves, and nothing else."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for name in (ROWS, PROFILE, CURVES, REPORT, MESSAGES, *(figure.file for figure in figures_of(PARTS))):
        (folder / name).unlink(missing_ok=True)


def _profile(wishes: Wishes, launcher: Launcher | None, means: Means, listen: Listener) -> Profile:
    """The one that is named; that of the study; one of this machine; else the machine is measured now."""
    kept = wishes.folder / PROFILE
    if wishes.profile is not None:
        profile = read_profile(wishes.profile)
    elif kept.is_file():
        return read_profile(kept)
    else:
        profile = find_profile()
        if profile.source == "built in" or (profile.machine, profile.cores) != (means.machine, os.cpu_count()):
            from volseg.study.calibration import measure_settings, merge

            listen(Message("no profile of this machine: measuring it first, in two or three minutes"))
            profile = merge(measure_settings(launcher, listen))
    save_profile(profile, kept)
    return profile


def choose_ranges(wishes: Wishes, profile: Profile, means: Means, seconds: float, several: bool = True) -> Ranges:
    """What is varied: what the user gave, and for the rest what there are memory and time for.

    seconds  for all cases together
    several  there is a way to start more than one rank
    """
    most = ranks_up_to(means.cores) if several else (1,)
    further = ranks_up_to(means.cores, beyond=2) if several else (1,)
    if means.scheduler:
        most = further = ranks_up_to(means.cores, beyond=0)
    ranges = Ranges(
        sides=wishes.sides or (0,), channels=wishes.channels or (8, 16),
        more_channels=wishes.channels or (4, 8, 16, 32),
        ranks=wishes.ranks or most, more_ranks=wishes.ranks or further, levels=wishes.levels,
    )  # fmt: skip
    if wishes.sides:
        return ranges
    multiple, chosen = int(2**wishes.levels), None
    for top in _LARGEST_SIDES:
        sides = sorted({max(multiple, side // multiple * multiple) for side in (top // 2, top * 3 // 4, top)})
        trial = replace(ranges, sides=tuple(sides))
        if chosen is not None and not _within(trial, wishes.parts, profile, means, seconds):
            break
        chosen = trial
    assert chosen is not None
    return chosen


def _within(ranges: Ranges, parts: Sequence[str], profile: Profile, means: Means, seconds: float) -> bool:
    """Whether all cases of the matrix fit, in memory and time; what only goes beyond it need not.

    In a batch job it is the cases of many ranks that must fit: it is there for volumes that few ranks cannot hold.
    """
    fewest = max(ranges.more_ranks) // 4 if means.scheduler else 1
    matrix = [case for case in cases_of(parts, ranges) if max(case.shape) <= ranges.sides[-1]]
    asked = [case for case in matrix if case.ranks >= fewest]
    possible, left = reachable(asked, profile, means)
    needed = sum(expected(foretell(case, profile, means.cores_per_node), means) for case in possible)
    return not left and needed <= _USED * seconds


def _report(
    wishes: Wishes, rows: Sequence[Row], left: Sequence[Left], ranges: Ranges, profile: Profile, means: Means
) -> Outcome:
    folder, view = wishes.folder, View(rows, ranges, profile, means)
    write_rows(folder / ROWS, rows)
    figures = figures_of(wishes.parts)
    pictures = draw(figures, view, folder)
    agreed, said = agreements(rows), sentences(rows, ranges, profile)
    text = html_report(_facts(wishes, profile, means), rows, left, agreed, said, figures, folder)
    write_text(folder / REPORT, text)
    return Outcome(rows, left, agreed, said, (folder / REPORT, folder / ROWS, *pictures))


def _facts(wishes: Wishes, profile: Profile, means: Means) -> dict[str, str]:
    nodes = f"{means.nodes} machines, " if means.nodes > 1 else ""
    measured = "" if profile.between.measured else "; messages between machines as is usual at 100 Gbit/s, not measured"
    return {
        "machine": f"{means.machine}, {nodes}{means.cores} ranks of one thread at once, {gibibytes(means.installed)}",
        "profile": f"{profile.machine}, {profile.date}{measured}",
        "volseg": f"{__version__}, Python {platform.python_version()}, torch {_version('torch')}",
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "command": wishes.command,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"
