"""Time against ranks, for one volume and for one that grows with them, and what the time goes into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from volseg.drawing.style import FAINT, INK, KINDS, figure, percent, title
from volseg.study.cases import TRAIN, VARIANTS, Case, cube, weak_shape
from volseg.study.extrapolation import MOST_RANKS, Foretold, foretell
from volseg.study.rows import WAITING, Row
from volseg.study.style import COLOURS, MARKERS, SIZES, beside, curve, label, log_axis, points, powers, predicted_from
from volseg.study.summary import MACHINE_LIMIT, doing, main_case
from volseg.study.view import View

_FAR = (512, 1024, 4096)
_BREAKDOWN = (1024, (64, 512, 4096))
"""Volume and ranks whose predicted time is taken apart."""


def strong_scaling(view: View) -> Any:
    """Seconds and efficiency, of volumes of several sizes."""
    made, grid = figure(12, 8.2, 2, 2, sharex=True)
    known = max([row.case.ranks for row in view.rows if row.timed], default=1)
    for column, task in enumerate(VARIANTS):
        seconds, efficiency = grid[0][column], grid[1][column]
        highest = 0.0
        for number, side in enumerate(dict.fromkeys((view.side(task), *_FAR))):
            highest = max(highest, _strong(seconds, efficiency, view, task, side, number))
        what = "Training: seconds of a step" if task == TRAIN else "Segmenting: seconds of the network"
        title(seconds, what)
        title(efficiency, f"{doing(task).capitalize()}: parallel efficiency")
        log_axis(seconds, "y", 0.02, highest * 3)
        efficiency.set_ylim(0, 1.24)
        efficiency.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        efficiency.set_xlabel("ranks")
        for axes in (seconds, efficiency):
            powers(axes, "x", 0.85, MOST_RANKS * 3, step=2)
            predicted_from(axes, known * 1.3, MOST_RANKS * 3)
    return made


def _strong(seconds: Any, efficiency: Any, view: View, task: str, side: int, number: int) -> float:
    """One volume: measured against one rank; the model beyond against one full machine."""
    colour, marker = SIZES[number], MARKERS[number]
    case = main_case(view.ranges, task, side)
    rows = [row for row in view.of_network(task) if row.case.shape == cube(side) and row.timed and row.seconds]
    first = 1 if number == 0 else view.per_machine
    model = [one for one in view.over_ranks(case) if one.case.ranks >= first]
    ranks, taken = [one.case.ranks for one in model], [one.time.seconds for one in model]
    known = max([row.case.ranks for row in rows], default=0)
    curve(seconds, ranks, taken, colour, known)
    seconds.plot(ranks, [taken[0] * ranks[0] / count for count in ranks], color=colour, lw=0.8, ls=":", zorder=2)
    label(seconds, ranks[0], taken[0], f"{side}³", colour, xytext=(2, 10), fontweight="bold")
    share = [taken[0] * ranks[0] / (t * count) for count, t in zip(ranks, taken, strict=True)]
    curve(efficiency, ranks, share, colour, known)
    _say_where_it_fits(seconds, model, colour, marker)
    label(efficiency, ranks[-1], share[-1], f"{side}³", colour, fontweight="bold")
    if rows:
        measured = [row.seconds or 0.0 for row in rows]
        counts = [row.case.ranks for row in rows]
        points(seconds, counts, measured, colour, marker=marker)
        whole = measured[0] * counts[0]
        points(
            efficiency, counts, [whole / (t * n) for n, t in zip(counts, measured, strict=True)], colour, marker=marker
        )
    return taken[0]


def _say_where_it_fits(axes: Any, model: Sequence[Foretold], colour: str, marker: str) -> None:
    least = next((one for one in model if one.memory.peak <= MACHINE_LIMIT), None)
    if least is not None and least is not model[0]:
        where = least.case.ranks, least.time.seconds
        axes.plot(
            *where, color=colour, marker=marker, markersize=7, markerfacecolor="white", markeredgewidth=1.5, zorder=5
        )
        beside(axes, *where, "fits 4 GB", colour)


def weak_scaling(view: View) -> Any:
    """The same block for each rank: seconds should stay as they are."""
    made, both = figure(12, 4.6, 2)
    block = view.ranges.block
    for axes, task in zip(both, VARIANTS, strict=True):
        case = main_case(view.ranges, task, block)
        rows = [
            row
            for row in view.of_network(task)
            if row.timed and row.seconds and row.case.shape == weak_shape(block, row.case.ranks)
        ]
        known = max([row.case.ranks for row in rows], default=1)
        model = view.over_blocks(case, block)
        ranks, taken = [one.case.ranks for one in model], [one.time.seconds for one in model]
        curve(axes, ranks, taken, COLOURS[task], known)
        points(axes, [row.case.ranks for row in rows], [row.seconds or 0.0 for row in rows], COLOURS[task])
        communicating = [one.time.communication for one in model]
        curve(axes, ranks, communicating, FAINT, known, lw=1.1)
        label(axes, ranks[-1], communicating[-1], "of it communication", FAINT, xytext=(-2, 9), ha="right")
        highest = max([*taken, *(row.seconds or 0.0 for row in rows)])
        axes.set_ylim(0, highest * 1.25)
        powers(axes, "x", 0.85, MOST_RANKS * 3, step=2)
        predicted_from(axes, known * 1.3, MOST_RANKS * 3, high=True)
        what = "Training: seconds of a step" if task == TRAIN else "Segmenting: seconds of the network"
        title(axes, f"{what}, {block}³ voxels a rank")
        axes.set_xlabel("ranks")
    return made


def where_time_goes(view: View) -> Any:
    """A training step by kind of work: measured beside planned, and predicted for many ranks."""
    made, (near, far) = figure(12, 5.2, 2, width_ratios=(1.15, 1))
    rows = [
        row for row in view.of_network(TRAIN) if row.timed and row.kinds and row.case.shape == cube(view.side(TRAIN))
    ]
    bars: list[tuple[str, Mapping[str, float]]] = []
    for row in rows:
        ranks = f"{row.case.ranks} rank{'s' if row.case.ranks > 1 else ''}"
        bars += [(f"{ranks}\nmeasured", row.kinds), (f"{ranks}\nplanned", row.planned_kinds)]
    _stack(near, bars, pairs=True)
    title(near, f"A training step of {view.side(TRAIN)}³")
    if not bars:
        near.text(0.5, 0.5, "nothing measured", transform=near.transAxes, ha="center", color=FAINT)
    side, counts = _BREAKDOWN
    predicted = []
    for count in counts:
        one = foretell(main_case(view.ranges, TRAIN, side, count), view.profile, view.per_machine)
        predicted.append((f"{count:,} ranks".replace(",", " "), one.by_kind() | {WAITING: one.imbalance}))
    uneven = foretell(_uneven(view, counts[-1]), view.profile, view.per_machine)
    predicted.append(
        (f"{counts[-1]:,} ranks,\n1000³".replace(",", " "), uneven.by_kind() | {WAITING: uneven.imbalance})
    )
    _stack(far, predicted)
    far.set_facecolor("#F9FAFB")
    title(far, f"Predicted for {side}³")
    near.set_ylabel("share of the time of a step")
    handles = [(kind, colour) for kind, colour in KINDS.items() if _seen(kind, [*bars, *predicted])]
    _legend(made, handles)
    return made


def _uneven(view: View, ranks: int) -> Case:
    """A volume that so many ranks cannot share evenly."""
    return main_case(view.ranges, TRAIN, 1000, ranks)


def _seen(kind: str, bars: Sequence[tuple[str, Mapping[str, float]]]) -> bool:
    return any(kinds.get(kind, 0) > 0.002 * sum(kinds.values()) for _, kinds in bars)


def _stack(axes: Any, bars: Sequence[tuple[str, Mapping[str, float]]], pairs: bool = False) -> None:
    """Shares as stacked bars, with seconds above; in pairs that stand together."""
    places = [n + 0.35 * (n // 2) if pairs else float(n) for n in range(len(bars))]
    for place, (_, kinds) in zip(places, bars, strict=True):
        whole, bottom = sum(kinds.values()) or 1.0, 0.0
        for kind, colour in KINDS.items():
            height = kinds.get(kind, 0.0) / whole
            axes.bar(place, height, 0.78, bottom, color=colour, edgecolor="white", lw=0.5)
            if height > 0.045:
                dark = kind in ("convolution", "norm", "head and loss", "halo", WAITING, "input and output")
                axes.text(
                    place, bottom + height / 2, percent(height), ha="center", va="center", fontsize=8,
                    color="white" if dark else INK,
                )  # fmt: skip
            bottom += height
        axes.text(place, 1.015, seconds_text(whole), ha="center", va="bottom", fontsize=9, color=INK)
    axes.set_xticks(places, [name for name, _ in bars])
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(visible=False, axis="x")


def seconds_text(seconds: float) -> str:
    """With three digits that count, in a unit that suits."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds / 60:,.0f} min"


def _legend(made: Any, handles: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=colour, label=kind) for kind, colour in reversed(handles)]
    made.legend(handles=patches, loc="outside right center", frameon=False, fontsize=9, handlelength=1.1)


def planned_against_measured(view: View) -> Any:
    """Each row's memory and time, with the bands that the plans are to keep to."""
    made, (memory, seconds) = figure(11, 5.4, 2)
    rows = [row for row in view.rows if row.done]
    _scatter(
        memory, [(row, (row.peak or 0) / 1e9, (row.planned_peak or 0) / 1e9) for row in rows if row.peak], 0.10, "GB"
    )
    timed = [row for row in rows if row.time_ratio is not None]
    _scatter(seconds, [(row, row.seconds or 0.0, row.planned_seconds or 0.0) for row in timed], 0.15, "s")
    title(memory, "Peak memory of the largest rank, GB")
    title(seconds, "Seconds: a training step, a segmenting network")
    return made


def _scatter(axes: Any, found: Sequence[tuple[Row, float, float]], band: float, unit: str) -> None:
    values = [value for _, a, b in found for value in (a, b) if value > 0] or [0.1, 1.0]
    low, high = min(values) / 1.4, max(values) * 1.4
    axes.fill_between(
        [low, high],
        [low * (1 - band), high * (1 - band)],
        [low * (1 + band), high * (1 + band)],
        color="#E5E7EB",
        lw=0,
        zorder=1,
    )
    axes.plot([low, high], [low, high], color=FAINT, lw=0.9, zorder=2)
    for task in VARIANTS:
        for number, variant in enumerate(VARIANTS[task]):
            here = [(a, b) for row, a, b in found if (row.case.task, row.case.variant) == (task, variant)]
            if here:
                style: dict[str, Any] = {"marker": MARKERS[number], "markersize": 5.5, "alpha": 0.85}
                if number:
                    style |= {"markerfacecolor": "white", "markeredgecolor": COLOURS[task], "markeredgewidth": 1.2}
                xs, ys = zip(*here, strict=True)
                points(axes, xs, ys, COLOURS[task], label=f"{doing(task)}, {variant}", **style)
    for which in "xy":
        log_axis(axes, which, low, high)
    axes.set_aspect("equal")
    axes.text(0.98, 0.02, f"grey: ±{percent(band)}", transform=axes.transAxes, ha="right", color=FAINT, fontsize=9)
    axes.set_xlabel(f"measured, {unit}")
    axes.set_ylabel(f"planned, {unit}")
    if found:
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
