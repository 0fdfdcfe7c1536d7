"""Rows as a study would leave them, without running anything."""

from dataclasses import replace

from volseg.planning.profile import built_in_profile
from volseg.study.cases import PARTS, TRAIN, Case, Ranges, cases_of, cube
from volseg.study.extrapolation import foretell
from volseg.study.means import Means
from volseg.study.rows import Row, planned
from volseg.study.view import View

PROFILE = built_in_profile()
MEANS = Means("a processor", 2, 1, 16 * 2**30, 24 * 2**30)
RANGES = Ranges((48, 72, 96))
FAILED = Row(Case(TRAIN, cube(96), 16, 3, 64, "plain"), error='<b>volseg train</b>: failed & gone, with\n"quotes"')


def row_of(case: Case, memory: float = 1.02, time: float = 0.9) -> Row:
    """Done, with so many times the planned memory and time."""
    model, timed = foretell(case, PROFILE, 2), case.ranks <= 2
    peak = round(model.memory.peak * memory)
    seconds = model.time.seconds * time if timed else None
    row = planned(Row(case, True, timed, model.dims, peak, model.memory.peak, seconds, wall=3.5), model)
    if timed and case.task == TRAIN:
        kinds = {kind: taken * time for kind, taken in row.planned_kinds.items()}
        row = replace(row, kinds=kinds, load_balance=0.97)
    return row


def all_rows() -> list[Row]:
    """Of every part, and one that failed."""
    return [*(row_of(case) for case in cases_of(PARTS, RANGES)), FAILED]


def view(rows: list[Row] | None = None) -> View:
    """For the figures."""
    return View(all_rows() if rows is None else rows, RANGES, PROFILE, MEANS)
