"""From the ranks' blocks to one file on the scan's own grid: no rank ever holds the whole mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.volumes.canonical import Orientation
from volseg.volumes.label_table import LabelTable
from volseg.volumes.output import Unit
from volseg.volumes.scan import Scan
from volseg.volumes.writing import Unpublished, prepare_volume


def stitch(
    path: Path,
    block: np.ndarray,
    scan: Scan,
    grid: ProcessGrid,
    *,
    overwrite: bool,
    names: Sequence[str] = (),
    labels: LabelTable | None = None,
) -> Unpublished:
    """Write the ranks' blocks as one volume on the scan's native grid, in its voxel order. Collective.

    block   [d, h, w] or [K, d, h, w]: this rank's box of the mask (`Scan.mask_box`), in canonical order
    names   of the channels
    labels  of a mask
    """
    orientation = Orientation.of(scan.native)

    def produce(units: list[Unit | None]) -> np.ndarray | None:
        wanted = [None if unit is None else orientation.box_to_canonical(unit.box) for unit in units]
        mine: np.ndarray | None = None
        if block.ndim == 3:
            mine = redistribute(block, scan.boxes, wanted, grid.communicator)
        else:
            # The units of one round may belong to different channels; each is moved on its own.
            for channel in sorted({unit.channel or 0 for unit in units if unit is not None}):
                chosen = [
                    box if unit is not None and unit.channel == channel else None
                    for unit, box in zip(units, wanted, strict=True)
                ]
                part = redistribute(block[channel], scan.boxes, chosen, grid.communicator)
                mine = part if part is not None else mine
        return None if mine is None else np.ascontiguousarray(orientation.from_canonical(mine))

    channels = block.shape[0] if block.ndim == 4 else None
    return prepare_volume(
        path,
        scan.native,
        block.dtype,
        produce,
        grid.communicator,
        channels=channels,
        overwrite=overwrite,
        names=names,
        labels=labels,
        source=scan.source,
        fixes=scan.source.audit.fixes,
        produce_communicates=True,
    )
