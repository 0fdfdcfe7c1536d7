"""What a rank holds while it makes a sample: a crop, augmented; beside it lie the tensors of the last step."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from volseg.config import AugmentationConfig
from volseg.geometry import Triple
from volseg.partition.layout import Layout
from volseg.planning.memory import MemoryPlan

FLOAT = 4

SOURCE_BYTES = 16 * 2**20
"""Of a volume that a rank has from others at a time, as it is stored and normalised. A rotated block comes from a box
that may be much larger than itself; then it is made piece by piece."""

_SOURCES = 4
"""Such a piece on its way: received, sent to others (the boxes of neighbours overlap), put together, normalised. Of a
case read from its files nothing is sent; then the first two hold where compressed files can be entered again."""

_CHUNK_BYTES = 128 * 2**16
"""Of a chunk of voxels that a thread interpolates: places, weights, neighbours."""


def source_bytes_per_voxel(itemsizes: int, channels: int) -> int:
    """Of the volume as it is stored, `itemsizes` for all channels together, normalised, and its label."""
    return itemsizes + channels * FLOAT + 1


def sample_bytes(
    settings: AugmentationConfig, layout: Layout, volume: Triple, channels: int, threads: int, cropped: bool
) -> int:
    """Bytes of the busiest rank, the finished sample included; 0 where samples are the volumes as they are.

    layout  of the padded view, a crop of `volume`
    """
    if not cropped and not settings.anything:
        return 0
    block, reach = layout.largest_block, 0
    if settings.blur > 0:
        reach += int(4 * settings.blur_range[1]) + 1
    if settings.low_resolution > 0:
        reach += int(2 / settings.low_resolution_range[0])
    wide = prod(min(n + 2 * reach, whole) for n, whole in zip(block, layout.shape, strict=True))
    turned = max(settings.rotate, settings.scale, settings.elastic) > 0
    source = (prod(volume) if turned else wide) * source_bytes_per_voxel(4 * channels, channels)
    moving = _SOURCES * min(SOURCE_BYTES, source) + (threads * _CHUNK_BYTES if turned else 0)
    changing = 4 * FLOAT * wide  # one channel at a time: its copy, that with more at its ends, a sum and what is added
    sample = (channels * FLOAT + 1) * prod(block)
    return (channels * FLOAT + 1) * wide + max(moving, sample + changing)


def with_sample(plan: MemoryPlan, sample: int) -> MemoryPlan:
    """The plan of a training step whose sample took so many bytes to make.

    Then the last step's tensors are still held, not its image and not what the kernels work in.
    """
    image = plan.parts.get("image and labels", 0)
    if sample <= image + plan.work:
        return plan
    more = sample - image
    parts = {name: size for name, size in plan.parts.items() if name not in ("image and labels", "kernels")}
    return replace(
        plan, activations=plan.activations + more, work=0, by_level=(plan.by_level[0] + more, *plan.by_level[1:]),
        peak_at="augmentation", parts=parts | {"augmentation": sample},
    )  # fmt: skip
