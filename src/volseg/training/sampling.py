"""What a step sees of a case: a crop of it, augmented; each rank makes its own block, and nothing is gathered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from volseg.config import MOST_CLASSES, Config
from volseg.geometry import Box, Triple
from volseg.nn.losses import IGNORE
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.sample_memory import SOURCE_BYTES, source_bytes_per_voxel
from volseg.program.kinds import Kind
from volseg.training.data import CaseBlocks, Sample
from volseg.volumes.augmentation.appearance import Appearance, Distribution, distribution
from volseg.volumes.augmentation.drawing import Draw, draw
from volseg.volumes.augmentation.interpolating import in_parallel, interpolate, pieces
from volseg.volumes.crops import count_by_plane, crop_around, crop_shape, find_voxel, random_crop
from volseg.volumes.dataset import Case
from volseg.volumes.intensity import occurring_values

OUTSIDE = MOST_CLASSES
"""Among the labels of a view: outside of the volume, where its image is 0 too. No class has this value."""

_CROP, _CHANGE, _READER = 1, 2, 3
"""Streams of random numbers: where a crop lies, how it is changed, and whose labels it has."""


@dataclass(frozen=True)
class _View:
    """A view of a case over the grid.

    box     of the volume
    layout  of the padded view
    inside  by rank: its block without the padding; the size may be 0
    """

    box: Box
    layout: Layout
    inside: tuple[Box, ...]


class Samples:
    """Samples of the cases to train on. What is drawn follows from (seed, step, place) alone.

    blocks   where the cases come from
    crop     voxels of these at most, D, H, W; empty: whole volumes
    threads  of this rank
    """

    def __init__(self, blocks: CaseBlocks, config: Config, crop: tuple[int, ...] = (), threads: int = 1) -> None:
        self.blocks, self.config, self.crop, self.threads = blocks, config, crop, threads
        self._distributions: dict[str, list[Distribution]] = {}
        self._planes: dict[tuple[str, int], np.ndarray] = {}

    def load(self, case: Case, step: int, place: int) -> Sample:
        """The case at `place` of a step's batch as tensors. Collective over the replica."""
        readers, reader = self.blocks.readers(case), 0
        if readers:
            reader = 1 + int(np.random.default_rng([self.config.training.seed, step, place, _READER]).integers(readers))
        with self.blocks.read_by(reader):
            if not self.crop and not self.config.augmentation.anything:
                return self.blocks.load(case)
            with self.blocks.reading(case):
                return self._load(case, step, place)

    def _load(self, case: Case, step: int, place: int) -> Sample:
        scan, seed, change = self.blocks.scan(case), self.config.training.seed, self.config.augmentation
        box = Box.whole(scan.space.shape)
        if self.crop:
            box = self._crop(case, np.random.default_rng([seed, step, place, _CROP]))
        rng = np.random.default_rng([seed, step, place, _CHANGE])
        drawn = draw(change, rng, scan.space.shape, scan.space.spacing, box, len(scan.channels))
        if drawn.untouched:
            return self.blocks.load(case)
        return self._make(case, self._view(box), drawn)

    def _crop(self, case: Case, rng: np.random.Generator) -> Box:
        """Collective."""
        volume = self.blocks.scan(case).space.shape
        wanted, share, chosen = rng.random() < self.config.data.foreground, rng.random(), rng.random()
        if not wanted or crop_shape(volume, self.crop) == volume:
            return random_crop(rng, volume, self.crop)
        planes = self._count(case)
        there = [n for n in range(1, len(planes)) if planes[n].any()]
        if not there:
            return random_crop(rng, volume, self.crop)
        value = there[int(share * len(there))]
        number = int(chosen * int(planes[value].sum()))
        inside = self.blocks.scan(case).inside

        def read(plane: int) -> np.ndarray:
            box = Box((plane, *inside.start[1:]), (plane + 1, *inside.stop[1:]))
            labels: np.ndarray = self.blocks.read_labels(case, box)[0]
            return labels

        voxel = find_voxel(value, number, planes[value], inside, volume, read, self.blocks.grid.communicator)
        return crop_around(voxel, volume, self.crop)

    def _count(self, case: Case) -> np.ndarray:
        """Voxels of each class by plane. Collective the first time."""
        key = case.name, self.blocks.reader
        if key not in self._planes:
            scan, classes = self.blocks.scan(case), len(self.blocks.dataset.labels)
            _, labels = self.blocks.read(case)
            counts = count_by_plane(labels, scan.inside, scan.space.shape[0], classes, self.blocks.grid.communicator)
            self._planes[key] = counts
        return self._planes[key]

    def _distribution(self, case: Case) -> list[Distribution]:
        """Of every channel of the volume as it is stored. Collective the first time."""
        if case.name not in self._distributions:
            images, _ = self.blocks.read(case)
            found = []
            for image, rule in zip(images, self.blocks.rules(case), strict=True):
                values, counts = occurring_values(partial(iter, [image]), self.blocks.grid.communicator)
                found.append(distribution(rule.apply(values).astype(np.float64), counts))
            self._distributions[case.name] = found
        return self._distributions[case.name]

    def _view(self, box: Box) -> _View:
        multiple = self.blocks.multiple
        layout = self.blocks.grid.layout(padded_shape(box.shape, multiple), multiple)
        whole = Box.whole(box.shape)
        return _View(box, layout, tuple(block.intersect(whole) for block in layout.blocks()))

    def _make(self, case: Case, view: _View, drawn: Draw) -> Sample:
        """Collective."""
        known: list[Distribution | None] = [None] * len(drawn.channels)
        if any(channel.needs_distribution for channel in drawn.channels):
            known = [*self._distribution(case)]
        with self.blocks.grid.communicator.meter.doing(Kind.AUGMENTATION):
            image, labels, held = self._moved(case, view, drawn)
            inside = view.inside[self.blocks.grid.communicator.rank]
            block = self.blocks.grid.block(view.layout)
            place = inside.relative_to(block).slices
            target = torch.full((1, *block.shape), IGNORE, dtype=torch.uint8)
            tensor = torch.zeros((1, len(image), *block.shape), dtype=torch.float32)
            if inside.size:
                kept = labels[inside.relative_to(held).slices]
                target.numpy()[(0, *place)] = np.where(kept == OUTSIDE, np.uint8(IGNORE), kept)
                made = tensor.numpy()[(0, slice(None), *place)]
                for number, (channel, values) in enumerate(zip(drawn.channels, known, strict=True)):
                    self._change(image[number], held, inside, view.box.shape, channel, values, made[number])
                # What lies outside of the volume is what padding is, whatever noise and contrast made of it.
                made[:, kept == OUTSIDE] = 0
        d, h, w = view.layout.shape
        return Sample(tensor.contiguous(memory_format=torch.channels_last_3d), target, d * h * w)

    def _moved(self, case: Case, view: _View, drawn: Draw) -> tuple[np.ndarray, np.ndarray, Box]:
        """Image [C, d, h, w] and labels of the box that this rank's block is made from, and the box. Collective.

        The voxels of the volume come piece by piece, so that of the volume no rank has more than a piece at a time.
        """
        communicator, scan = self.blocks.grid.communicator, self.blocks.scan(case)
        itemsizes = sum(volume.dtype.itemsize for volume in scan.channels)
        most = SOURCE_BYTES // source_bytes_per_voxel(itemsizes, len(scan.channels))
        wide = [drawn.reach(inside) if inside.size else inside for inside in view.inside]
        turns = [pieces(box, drawn.space, most, self.blocks.reads_slices(case)) for box in wide]
        held = wide[communicator.rank]
        image = np.empty((len(drawn.channels), *held.shape), dtype=np.float32)
        labels = np.empty(held.shape, dtype=np.uint8)
        rules = self.blocks.rules(case)
        for turn in range(max(map(len, turns))):
            boxes = [cuts[turn] if turn < len(cuts) else None for cuts in turns]
            sources = [None if box is None else drawn.space.source_box(box) for box in boxes]
            images, names = self.blocks.fetch(case, sources)
            box, source = boxes[communicator.rank], sources[communicator.rank]
            if box is None or source is None:
                continue
            normalized = [rule.apply(values) for rule, values in zip(rules, images, strict=True)]
            cut = box.relative_to(held).slices
            into = image[(slice(None), *cut)], labels[cut]
            interpolate(normalized, names, source, drawn.space, box, into, OUTSIDE, self.threads)
        return image, labels, held

    def _change(
        self, image: np.ndarray, held: Box, inside: Box, view: Triple, channel: Appearance, known: Distribution | None,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        def some(box: Box) -> None:
            source = channel.reach(box, view)
            part = image[source.relative_to(held).slices].copy()
            out[box.relative_to(inside).slices] = channel.apply(part, source, box, view, known)

        in_parallel(some, _slabs(inside, self.threads), self.threads)


def _slabs(box: Box, count: int) -> list[Box]:
    """A box cut along D for so many threads."""
    start, stop = box.start[0], box.stop[0]
    cuts = [start + (stop - start) * n // count for n in range(count + 1)]
    return [Box((a, *box.start[1:]), (b, *box.stop[1:])) for a, b in pairwise(cuts) if b > a]
