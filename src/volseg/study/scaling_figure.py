"""Memory and time over the number of ranks, as the model foretells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from volseg.drawing.style import figure
from volseg.planning.search import Scaling
from volseg.study.style import COLOURS


def scaling_figure(curves: Mapping[str, Scaling]) -> Any:
    """A matplotlib figure of three axes: seconds, efficiency, memory a rank; by task."""
    made, (seconds, efficiency, memory) = figure(13, 4.2, rows=1, columns=3)
    for task, found in curves.items():
        ranks = [run.ranks for run in found.runs]
        style = {"color": COLOURS[str(task)], "marker": "o", "markersize": 3}
        taken = [run.seconds for run in found.runs]
        seconds.plot(ranks, taken, label=str(task), **style)
        seconds.plot(ranks, [taken[0] * ranks[0] / n for n in ranks], color=style["color"], lw=0.8, ls=":")
        efficiency.plot(ranks, found.efficiency, label=str(task), **style)
        peaks = [run.plan.memory.peak / 2**30 for run in found.runs]
        memory.plot(ranks, peaks, label=str(task), **style)
        whole = found.runs[0].plan.memory
        scaled = whole.activations / 2**30
        memory.plot(ranks, [scaled * ranks[0] / n for n in ranks], color=style["color"], lw=0.8, ls=":")
    seconds.set_title("seconds, predicted; dotted: perfect", fontsize=10, loc="left")
    efficiency.set_title("efficiency against the first", fontsize=10, loc="left")
    memory.set_title("GiB a rank, predicted; dotted: activations / ranks", fontsize=10, loc="left")
    for axes in (seconds, efficiency, memory):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("ranks")
        axes.legend(frameon=False, fontsize=9)
    for axes in (seconds, memory):
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    efficiency.set_ylim(0, 1.1)
    return made
