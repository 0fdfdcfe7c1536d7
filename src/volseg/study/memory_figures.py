"""Memory against the side of the volume, against channels, and against ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from volseg.drawing.style import FAINT, figure, title
from volseg.networks.architectures import described
from volseg.planning.plain_memory import plain_training_bytes
from volseg.study.cases import SEGMENT, TRAIN, VARIANTS, Case, cube
from volseg.study.extrapolation import LARGEST_SIDE, MOST_RANKS, Foretold, doublings, over_channels, over_sides
from volseg.study.rows import Row
from volseg.study.style import COLOURS, MARKERS, SIZES, beside, curve, label, log_axis, points, powers, predicted_from
from volseg.study.summary import MACHINE_LIMIT, chosen, doing, main_case, of_volume
from volseg.study.view import View

GB = 1e9
_FAR = (1024, 2048, 4096)


def against_side(view: View) -> Any:
    """One rank: measured, the model, plain torch, and what machines have."""
    made, axes = figure(9, 5.6)
    rows = {task: _whole(view, task) for task in VARIANTS}
    measured = [row.case.shape[0] for found in rows.values() for row in found]
    least = min([*view.ranges.sides, *measured])
    known = max([*measured, least])
    multiple = int(2**view.ranges.levels)
    sides = doublings(least, LARGEST_SIDE, 4, multiple)
    for task in VARIANTS:
        case = main_case(view.ranges, task, least)
        model = over_sides(case, sides, view.profile)
        curve(axes, sides, [_gb(one) for one in model], COLOURS[task], known)
        label(axes, sides[-1], _gb(model[-1]), doing(task), COLOURS[task])
        points(
            axes, [row.case.shape[0] for row in rows[task]], [(row.peak or 0) / GB for row in rows[task]], COLOURS[task]
        )
    recompute = Case(
        task=SEGMENT,
        shape=cube(least),
        base_channels=view.ranges.channels[-1],
        levels=view.ranges.levels,
        ranks=1,
        variant="recompute",
    )
    model = over_sides(recompute, sides, view.profile)
    curve(axes, sides, [_gb(one) for one in model], COLOURS[SEGMENT], known, lw=1.0)
    label(axes, sides[-1], _gb(model[-1]), "segmenting,\nrecomputed", COLOURS[SEGMENT])
    again = chosen(
        view.rows, task=SEGMENT, variant="recompute", ranks=1, cube=True, base_channels=recompute.base_channels
    )
    points(
        axes, [row.case.shape[0] for row in again], [(row.peak or 0) / GB for row in again], COLOURS[SEGMENT],
        markersize=4, markerfacecolor="white", markeredgecolor=COLOURS[SEGMENT],
    )  # fmt: skip
    network = described(main_case(view.ranges, TRAIN, least).model)
    plain = [plain_training_bytes(network, cube(side)) / GB for side in sides]
    axes.plot(sides, plain, color=FAINT, lw=1.4, ls=":", zorder=2)
    label(axes, sides[-1], plain[-1], "plain torch,\ntraining", FAINT)
    bottom, top = 0.2, plain[-1] * 2.2
    _guide(axes, sides, plain[-1] * 0.012, "side³")
    powers(axes, "x", least * 0.88, LARGEST_SIDE * 1.02)
    log_axis(axes, "y", bottom, top)
    predicted_from(axes, known * 1.06, LARGEST_SIDE * 1.02)
    _machines(axes, view.means.installed, top)
    axes.set_xlabel("side of the volume, voxels")
    axes.set_ylabel("peak memory, GB")
    title(
        axes, f"Memory of a whole volume on one rank, {view.ranges.channels[-1]} channels, {view.ranges.levels} levels"
    )
    return made


def _guide(axes: Any, sides: Sequence[int], last: float, text: str) -> None:
    """A slope to compare with, where it is in nobody's way."""
    ends = [sides[-1] / 8, sides[-1] / 1.5]
    heights = [last * (end / sides[-1]) ** 3 for end in ends]
    axes.plot(ends, heights, color=FAINT, lw=1.0)
    label(axes, ends[1], heights[1], text, FAINT, xytext=(4, -2))


def _machines(axes: Any, installed: int, top: float) -> None:
    """What machines have. Levels that would lie on each other are left out."""
    levels = [(80.0, "GPU of 80 GB"), (128.0, "machine of 128 GB"), (installed / GB, "this machine")]
    shown: list[float] = []
    for height, text in sorted(levels, key=lambda level: level[1] != "this machine"):
        if any(0.8 < height / other < 1.25 for other in shown) or height > top:
            continue
        shown.append(height)
        axes.axhline(height, color=FAINT, lw=0.8, ls=(0, (1, 2)), zorder=1)
        words = f"{text}, {height:.0f} GB" if text == "this machine" else text
        label(axes, axes.get_xlim()[0], height, words, FAINT, xytext=(4, 6), fontsize=8.5)


def against_channels(view: View) -> Any:
    """One rank, a volume of middle size."""
    made, axes = figure(7.5, 4.8)
    side = view.ranges.sides[len(view.ranges.sides) // 2]
    rows = {task: chosen(view.rows, task=task, fastest=True, ranks=1, shape=cube(side)) for task in VARIANTS}
    measured = [row.case.base_channels for found in rows.values() for row in found]
    least = min([*view.ranges.more_channels, *measured])
    known = max([*measured, least])
    counts, high = doublings(least, 8 * known), 0.0
    for task in VARIANTS:
        model = over_channels(main_case(view.ranges, task, side), counts, view.profile)
        curve(axes, counts, [_gb(one) for one in model], COLOURS[task], known)
        volume = [one.memory.activations / GB for one in model]
        curve(axes, counts, volume, COLOURS[task], known, lw=1.0, alpha=0.55)
        points(
            axes,
            [row.case.base_channels for row in rows[task]],
            [(row.peak or 0) / GB for row in rows[task]],
            COLOURS[task],
        )
        label(axes, counts[-1], _gb(model[-1]), doing(task), COLOURS[task])
        label(axes, counts[0], volume[0], "of it tensors", COLOURS[task], xytext=(4, -9), fontsize=8)
        high = max(high, _gb(model[-1]))
    powers(axes, "x", least * 0.9, counts[-1] * 1.04)
    low = min(
        one.memory.activations / GB
        for one in over_channels(main_case(view.ranges, SEGMENT, side), counts[:1], view.profile)
    )
    log_axis(axes, "y", low * 0.6, high * 1.5)
    predicted_from(axes, known * 1.06, counts[-1] * 1.04)
    axes.set_xlabel("channels at full resolution (doubled at each level, up to 320)")
    axes.set_ylabel("peak memory, GB")
    title(axes, f"Memory against channels: {side}³ on one rank")
    return made


def against_ranks(view: View) -> Any:
    """Memory of each rank, of one volume on more and more ranks: what was measured, and volumes of the future."""
    made, both = figure(12, 5.4, 2, sharey=True)
    known = max([row.case.ranks for row in view.rows if row.done], default=1)
    lowest = 0.01
    for axes, task in zip(both, VARIANTS, strict=True):
        for number, side in enumerate(dict.fromkeys((view.side(task), *_FAR))):
            _of_volume(axes, view, task, side, number, known if number == 0 else 0)
        axes.axhline(MACHINE_LIMIT / GB, color=FAINT, lw=0.8, ls=(0, (1, 2)), zorder=1)
        label(axes, 1, MACHINE_LIMIT / GB, "4 GB", FAINT, xytext=(2, 6), fontsize=8.5)
        powers(axes, "x", 0.85, MOST_RANKS * 3, step=2)
        log_axis(axes, "y", lowest, 6e4)
        predicted_from(axes, known * 1.3, MOST_RANKS * 3)
        axes.set_xlabel("ranks")
        title(axes, f"{doing(task).capitalize()}: memory of each rank")
    both[0].set_ylabel("peak memory a rank, GB")
    return made


def _of_volume(axes: Any, view: View, task: str, side: int, number: int, known: int) -> None:
    colour, marker = SIZES[number], MARKERS[number]
    model = view.over_ranks(main_case(view.ranges, task, side))
    ranks = [one.case.ranks for one in model]
    curve(axes, ranks, [_gb(one) for one in model], colour, known)
    perfect = [model[0].memory.activations / GB / count for count in ranks]
    axes.plot(ranks, perfect, color=colour, lw=0.8, ls=":", zorder=2)
    rows = [row for row in view.of_network(task) if row.case.shape == cube(side)]
    points(axes, [row.case.ranks for row in rows], [(row.peak or 0) / GB for row in rows], colour, marker=marker)
    if rows:
        _tensors(axes, view, rows, model, colour)
    label(axes, 1, _gb(model[0]), f"{side}³", colour, xytext=(2, 10), fontweight="bold")
    least = next((one for one in model if one.memory.peak <= MACHINE_LIMIT), None)
    if least is not None and least.case.ranks > 1:
        where = (least.case.ranks, _gb(least))
        axes.plot(
            *where, color=colour, marker=marker, markersize=7, markerfacecolor="white", markeredgewidth=1.5, zorder=5
        )
        beside(axes, *where, f"{least.case.ranks:,} ranks".replace(",", " "), colour)


def _tensors(axes: Any, view: View, rows: Sequence[Row], model: Sequence[Foretold], colour: str) -> None:
    """What the volume takes of it: measured less what the model has for process, weights and kernels."""
    ranks, tensors = [one.case.ranks for one in model], [one.memory.activations / GB for one in model]
    curve(axes, ranks, tensors, colour, rows[-1].case.ranks, lw=1.0)
    heights = [of_volume(row, view.profile) / GB for row in rows]
    points(axes, [row.case.ranks for row in rows], heights, colour, markerfacecolor="white", markeredgecolor=colour)
    beside(axes, rows[-1].case.ranks, heights[-1], "of it tensors", colour)


def _whole(view: View, task: str) -> list[Row]:
    return [row for row in view.of_network(task) if row.case.ranks == 1 and row.case.cube]


def _gb(one: Foretold) -> float:
    return one.memory.peak / GB
