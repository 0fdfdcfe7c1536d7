"""Pictures of validation cases: the mask of an epoch on its scan, with the reference beside it.

Three planes of a case are gathered, those that show its reference best, so they are the same in each epoch; no rank
holds more of a volume than that and its own block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from volseg.distributed.communicator import Communicator
from volseg.drawing.gathering import choose_planes, gather_planes
from volseg.drawing.planes import SOFT_TISSUE, Plane, PlaneName
from volseg.drawing.preview import draw_preview
from volseg.errors import first_line
from volseg.geometry import Triple
from volseg.nn.losses import IGNORE
from volseg.training.data import CaseBlocks, Sample
from volseg.volumes.canonical import Orientation
from volseg.volumes.dataset import Case
from volseg.volumes.intensity import is_ct
from volseg.volumes.label_table import LabelTable

FOLDER = "previews"
WIDTH = 1000


class Previews:
    """Collects the planes of some cases as they are validated, and draws them when that is done."""

    def __init__(self, run: Path, cases: Sequence[Case], labels: Mapping[str, int], world: Communicator) -> None:
        """cases: those to draw; none draws nothing."""
        self._folder, self._names, self._world = run / FOLDER, {case.name for case in cases}, world
        self._labels = LabelTable(labels)
        self._chosen: dict[tuple[str, Triple], Triple] = {}  # of a case on a grid
        self._seen: dict[str, Mapping[PlaneName, Plane]] = {}
        self._window: tuple[float, float] | None = None  # of all of them; None: chosen for each

    def see(self, case: Case, blocks: CaseBlocks, sample: Sample, mask: Tensor) -> None:
        """Keep the planes of a case that is to be drawn, on its replica's root. Collective over the replica.

        sample  this rank's block of it, and `mask` [1, d, h, w] what the network made of that
        """
        if case.name not in self._names:
            return
        scan, communicator = blocks.scan(case), blocks.grid.communicator
        place = (0, *scan.inside.relative_to(scan.block).slices)
        order = Orientation.of(scan.space)  # of what an imported network sees, which may be another than the canonical
        box, space = order.box_to_canonical(scan.inside), order.canonical_space(scan.space)
        arrays = (array[place].numpy() for array in (sample.image[0], mask, sample.target))
        image, found, true = (order.to_canonical(array) for array in arrays)
        true = np.where(true == IGNORE, 0, true)
        chosen = self._chosen.get((case.name, space.shape))
        if chosen is None:
            chosen = choose_planes(true, len(self._labels.names), box, space, communicator)
            self._chosen[case.name, space.shape] = chosen
        planes = gather_planes(image, found, chosen, box, space, communicator, true)
        fixed = blocks.schemes[0].fixed
        if fixed is not None:  # as they were before they were normalised: Hounsfield units
            planes = {name: replace(plane, image=fixed.undo(plane.image)) for name, plane in planes.items()}
        if is_ct(blocks.schemes[0].name):  # clipped as they are, air no longer gives CT away
            self._window = SOFT_TISSUE
        if communicator.is_root:
            self._seen[case.name] = planes

    def write(self, epoch: int, dice: Mapping[str, float]) -> tuple[list[Path], str | None]:
        """Draw what was seen since the last call, each replica its own cases. Collective.

        dice  of the cases by name, for their titles

        Returns the files of all replicas, and why one could not be drawn, where that is so: that is no reason to stop.
        """
        if not self._names:
            return [], None
        drawn: list[str] = []
        failure = None
        for name, planes in self._seen.items():
            said = f", Dice {dice[name]:.3f}" if name in dice else ""
            try:
                self._folder.mkdir(exist_ok=True)
                titled = f"{name}, epoch {epoch}{said}"
                draw_preview(self.path(epoch, name), planes, self._labels, titled, self._window, WIDTH)
            except Exception as error:
                failure = f"{self.path(epoch, name)}: {first_line(error)}"
            else:
                drawn.append(name)
        self._seen.clear()
        every = self._world.gather_all((drawn, failure))
        files = [self.path(epoch, name) for name in sorted(name for names, _ in every for name in names)]
        return files, next((text for _, text in every if text is not None), None)

    def path(self, epoch: int, case: str) -> Path:
        """Where the picture of a case after an epoch lies."""
        return self._folder / f"epoch_{epoch:04d}_{case}.png"
