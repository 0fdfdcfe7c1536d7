"""The study's figures: what each is called and shows, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.files import replacing
from volseg.study import memory_figures, time_figures
from volseg.study.view import View


@dataclass(frozen=True)
class Figure:
    """One of them.

    part     of the study that it belongs to
    caption  how to read it
    """

    file: str
    part: str
    title: str
    caption: str
    draw: Callable[[View], Any]


FIGURES = (
    Figure(
        "memory_side.png", "memory", "Memory against the side of the volume",
        "Filled markers: measured. Lines: the model, dashed where nothing was measured. Dotted grey: the tensors of a "
        "training step of the same network in plain torch, by its own model, without its process. At the left the "
        "process itself is what is seen; from some 100 voxels a side the volume is, and grows with its cube.",
        memory_figures.against_side,
    ),
    Figure(
        "memory_channels.png", "channels", "Memory against channels",
        "Thick lines: the whole; thin ones: the tensors of it (kernels have 8 channels at least). That grows in "
        "proportion to the channels; weights, with their square, matter with many only.",
        memory_figures.against_channels,
    ),
    Figure(
        "memory_ranks.png", "scaling", "Memory of each rank against ranks",
        "Filled markers: measured; open circles: of it the tensors, without process, weights and kernels. Dotted: the "
        "tensors of one rank divided by the ranks. The lines lie above that by the halo, and by the process of each "
        "rank, which no number of ranks makes smaller. Open symbols at 4 GB a rank (32 ranks on a machine of 128 GB): "
        "the fewest ranks, in powers of two, that keep to it.",
        memory_figures.against_ranks,
    ),
    Figure(
        "strong_scaling.png", "scaling", "Strong scaling: one volume on more and more ranks",
        "Markers: measured, where each rank had a core of its own. Dotted: perfect. Efficiency is against one rank for "
        "the volume that was measured, and against one full machine for the larger ones, which are predicted. Open "
        "markers: from so many ranks on, each keeps to 4 GB; to the left of them the memory is not there.",
        time_figures.strong_scaling,
    ),
    Figure(
        "weak_scaling.png", "scaling", "Weak scaling: the same block for each rank",
        "Perfect is flat. The rise at the first ranks is that of cores that share caches and memory; beyond one "
        "machine only messages grow.",
        time_figures.weak_scaling,
    ),
    Figure(
        "where_time_goes.png", "scaling", "Where the time of a training step goes",
        "Shares of a rank's time, on average, with the seconds of a step above. Communication is in warm colours, with "
        "the waiting for slower ranks apart: what blocks of unequal size cost. 1000³ cannot be shared evenly among as "
        "many ranks as 1024³.",
        time_figures.where_time_goes,
    ),
    Figure(
        "planned_measured.png", "", "Planned against measured",
        "Every row that was run. Grey: ±10 % for memory, ±15 % for time.",
        time_figures.planned_against_measured,
    ),
)  # fmt: skip


def figures_of(parts: Iterable[str]) -> list[Figure]:
    """Those of some parts of the study, and those of all."""
    wanted = set(parts)
    return [figure for figure in FIGURES if not figure.part or figure.part in wanted]


def draw(figures: Iterable[Figure], view: View, folder: Path) -> list[Path]:
    """Draw them as PNG files, each whole or not at all."""
    paths = []
    for figure in figures:
        paths.append(folder / figure.file)
        with replacing(paths[-1]) as temporary:
            figure.draw(view).savefig(temporary, format="png")
    return paths
