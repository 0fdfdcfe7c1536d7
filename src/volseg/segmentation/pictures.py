"""The preview of a partitioned mask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from volseg.distributed.grid import ProcessGrid
from volseg.drawing.gathering import choose_planes, gather_planes
from volseg.drawing.preview import draw_preview
from volseg.volumes.label_table import LabelTable
from volseg.volumes.scan import Scan


def write_preview(
    path: Path, image: np.ndarray, mask: np.ndarray, scan: Scan, grid: ProcessGrid, labels: Mapping[str, int],
    title: str,
) -> None:  # fmt: skip
    """Draw the preview PNG on the root rank. Collective.

    image  [d, h, w] this rank's box of the scan (`Scan.mask_box`), in canonical order
    mask   [d, h, w] the same box of the mask
    """
    space, communicator = scan.mask_space, grid.communicator
    chosen = choose_planes(mask, len(labels), scan.mask_box, space, communicator)
    planes = gather_planes(image, mask, chosen, scan.mask_box, space, communicator)
    communicator.on_root(lambda: draw_preview(path, planes, LabelTable(labels), title))
