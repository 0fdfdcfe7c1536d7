"""Sliding windows over a scan, shared out over ranks: the same bits on any number of them.

A rank has a part of each plane: there it reads the image, and adds up what windows make of it. In each round every rank
takes one window, fetches its voxels from those who have them, runs the network on it alone, and sends each rank the
logits of its part. Rounds go through the scan plane by plane, and what no later window touches is finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box, Triple
from volseg.models.origin import Weighting
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.partition.window import Range
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.segmentation.filling import BlockResult, Logits, fill_mask
from volseg.segmentation.scan_image import ScanImage
from volseg.segmentation.windows.mosaic import Mosaic
from volseg.segmentation.windows.places import importance, window_boxes
from volseg.segmentation.windows.runner import WindowRunner
from volseg.volumes.scan import Scan


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a scan is gone through.

    size      voxels of a window, on the network's axes
    step      how far windows lie apart, as a share of the size
    mirrored  the axes that are mirrored
    weighting  whose windows they are, and what their voxels weigh (`models.origin.Origin`)
    edge      what lies beyond the volume is as its outermost voxels; else zero
    """

    size: Triple
    step: float = 0.5
    mirrored: tuple[int, ...] = ()
    weighting: Weighting = "nnunet"
    edge: bool = False

    def boxes(self, shape: Triple) -> tuple[Box, ...]:
        """Of a volume of `shape`."""
        return window_boxes(shape, self.size, self.step, self.weighting)


class WindowedNetwork(Logits):
    """Networks of one architecture over the windows of a scan. To make one is collective.

    The scan lies on a grid 1 x Py x Px without padding. Raises VolumeError, on all ranks, where the models want another
    number of channels.
    """

    def __init__(
        self, models: Sequence[UNet], scan: Scan, card: ModelCard, grid: ProcessGrid, windows: Windows,
        tell: Callable[[float], None] | None = None, precision: Precision = FLOAT32,
    ) -> None:  # fmt: skip
        self._scan, self._grid, self._windows, self._tell = scan, grid, windows, tell
        self._classes = models[0].network.classes
        with grid.communicator.meter.doing(Kind.FILES):
            self._planes = _Planes(ScanImage(scan, card, grid, 0))
        self._run = WindowRunner(models, windows.mirrored, grid.communicator.meter, precision)
        self._weights = importance(windows.size, windows.weighting)
        self._seconds = 0.0
        self._columns = list(scan.layout.blocks())
        whole, beyond = scan.layout.shape, int(scan.back is not None)
        self._held = [_wider(block, beyond, whole) for block in self._columns]

    @property
    def head(self) -> tuple[None, None]:
        """Windows give logits."""
        return None, None

    @property
    def seconds(self) -> dict[str, float]:
        """By layer: of the windows together."""
        return {"windows": self._seconds}

    def logit_slabs(self) -> Iterator[tuple[int, Tensor]]:
        """As `Logits.logit_slabs`."""
        for first, logits in self._finished():
            yield first, torch.from_numpy(logits).unsqueeze(0)

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """As `Logits.feature_slabs`; they are logits."""
        end, before = self._scan.layout.shape[0], np.empty((self._classes, 0, *self._held_here.shape[1:]), np.float32)
        for first, logits in self._finished():
            start, joined = first - before.shape[1], np.concatenate([before, logits], axis=1)
            stop = start + joined.shape[1]
            before = joined[:, -1:].copy()
            if stop == end:
                yield (start, stop), torch.from_numpy(joined).unsqueeze(0)
            elif stop - start > 1:  # the last plane is there for the one before it
                yield (start, stop - 1), torch.from_numpy(joined).unsqueeze(0)

    @property
    def _held_here(self) -> Box:
        return self._held[self._grid.communicator.rank]

    def _finished(self) -> Iterator[tuple[int, np.ndarray]]:
        """First plane and logits [K, planes, h, w] of what this rank adds up. Collective."""
        communicator = self._grid.communicator
        mosaic = Mosaic(self._classes, self._held_here, self._weights)
        boxes = self._windows.boxes(self._scan.layout.shape)
        for first in range(0, len(boxes), communicator.size):
            some = boxes[first : first + communicator.size]
            x = self._fetch(some)
            begin = time.perf_counter()
            weighted = None if x is None else self._weigh(x)
            self._seconds += time.perf_counter() - begin
            for window, part in zip(some, self._exchange(weighted, some), strict=True):
                yield from mosaic.add(window, part)
            if self._tell is not None:
                self._tell((first + len(some)) / len(boxes))
        self._planes.image.close()
        yield from mosaic.finished()

    def _fetch(self, some: Sequence[Box]) -> Tensor | None:
        """The voxels [1, C, d, h, w] of this rank's window, beyond the volume as `Windows.edge` says. Collective.

        None where this round has no window for it.
        """
        communicator, whole = self._grid.communicator, Box.whole(self._scan.layout.shape)
        low, high = max(0, some[0].start[0]), min(whole.stop[0], some[-1].stop[0])
        with communicator.meter.doing(Kind.FILES):
            mine = self._planes.read(low, high)
        columns = [Box((low, *box.start[1:]), (high, *box.stop[1:])) for box in self._columns]
        wanted: list[Box | None] = [window.intersect(whole) for window in some]
        wanted += [None] * (communicator.size - len(some))
        part = redistribute(mine, columns, wanted, communicator)
        if part is None:
            return None
        window = some[communicator.rank]
        inside = wanted[communicator.rank]
        assert inside is not None
        if self._windows.edge:
            before = (a - b for a, b in zip(inside.start, window.start, strict=True))
            behind = (a - b for a, b in zip(window.stop, inside.stop, strict=True))
            part, inside = np.pad(part, [(0, 0), *zip(before, behind, strict=True)], mode="edge"), window
        x = torch.zeros(*window.shape, len(part)).permute(3, 0, 1, 2)
        x[(..., *inside.relative_to(window).slices)] = torch.from_numpy(part)
        return x.unsqueeze(0)

    def _weigh(self, x: Tensor) -> np.ndarray:
        """Weighted logits [K, d, h, w] of a window."""
        with self._grid.communicator.meter.during("windows"):
            logits: np.ndarray = self._run(x)[0].numpy()
        logits *= self._weights
        return logits

    def _exchange(self, weighted: np.ndarray | None, some: Sequence[Box]) -> list[np.ndarray]:
        """Of each window's weighted logits those of this rank's part, [K, d', h', w']. Collective."""
        communicator = self._grid.communicator
        rank = communicator.rank
        with communicator.meter.doing(Kind.MOVING):
            sends = []
            for other, held in enumerate(self._held if weighted is not None else ()):
                part = some[rank].intersect(held)
                if part.size and other != rank:
                    assert weighted is not None
                    cut = weighted[(..., *part.relative_to(some[rank]).slices)]
                    sends.append((other, np.ascontiguousarray(cut)))
            parts, receives = [], []
            for other, window in enumerate(some):
                part = window.intersect(self._held_here)
                if other == rank:
                    assert weighted is not None
                    parts.append(weighted[(..., *part.relative_to(window).slices)])
                else:
                    parts.append(np.empty((self._classes, *part.shape), np.float32))
                    if part.size:
                        receives.append((other, parts[-1]))
            communicator.send_receive(sends, receives)
        return parts


@torch.inference_mode()
def segment_by_windows(
    models: Sequence[UNet], scan: Scan, card: ModelCard, grid: ProcessGrid, windows: Windows, *,
    probabilities: bool = False, tell: Callable[[float], None] | None = None, precision: Precision = FLOAT32,
) -> BlockResult:  # fmt: skip
    """Segment this rank's box of the mask by sliding windows, averaging the logits of `models`. Collective.

    tell       is called with the share of the windows that is done
    precision  in which the networks' tensors are stored

    The bits do not depend on the ranks. Raises VolumeError, on all ranks, where the scan does not suit the models or
    cannot be read.
    """
    return fill_mask(
        WindowedNetwork(models, scan, card, grid, windows, tell, precision), scan, card, grid, probabilities
    )


class _Planes:
    """Planes of this rank's part of an image, in rising order: each is read once, and kept while it is asked for."""

    def __init__(self, image: ScanImage) -> None:
        self.image = image
        self._first, self._rows = 0, image.planes((0, 0), 0).numpy()

    def read(self, first: int, stop: int) -> np.ndarray:
        """[C, stop - first, h, w] float32, a view. Collective; raises, on all ranks, what went wrong on any."""
        there = self._first + len(self._rows)
        kept = self._rows[first - self._first :]
        if stop > there:
            self._rows = np.concatenate([kept, self.image.planes((there, stop), 0).numpy()])
            self.image.settled()
        else:
            self._rows = kept
        self._first = first
        return np.moveaxis(self._rows[: stop - first], 3, 0)


def _wider(block: Box, beyond: int, whole: Triple) -> Box:
    """A block and what lies behind it on H and W, up to the faces of the volume."""
    d, h, w = block.stop
    return Box(block.start, (d, min(h + beyond, whole[1]), min(w + beyond, whole[2])))
