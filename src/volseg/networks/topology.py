"""Kernels and strides by the data: how a U-Net goes through the resolutions of volumes whose voxels are no cubes.

The rules are those of nnU-Net's planner (Isensee et al., Nature Methods 2021; `get_pool_and_conv_props` in
nnunetv2/experiment_planning/experiment_planners/network_topology.py). An axis is halved only while its spacing is less
than twice the finest one and its side is long enough. Kernels have one voxel along an axis until its spacing is less
than twice the finest one, and keep their width from there on.
"""

from __future__ import annotations

from volseg.geometry import Triple, halved_on

LEAST_SIDE = 4
"""Voxels below which no side is halved (nnU-Net's UNet_featuremap_min_edge_length)."""

_ALIKE = 2.0
"""Spacings are alike while one is less than so many times the other."""

Spacing = tuple[float, float, float]


def topology(
    spacing: Spacing, shape: Triple, levels: int, width: int = 3
) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """Kernels of each resolution, and the strides between them, for volumes of this spacing and shape.

    spacing  mm, D, H, W
    shape    voxels, D, H, W
    levels   halvings, at most; fewer where no side is long enough
    width    side of a kernel along an axis that is fine enough

    The kernels are one more than the strides, the coarsest `width` on each axis.
    """
    kernels: list[Triple] = []
    strides: list[Triple] = []
    kernel: Triple = (1, 1, 1)
    while len(strides) < levels:
        stride = _stride(spacing, shape)
        if stride == (1, 1, 1):
            break
        finest = min(spacing)
        d, h, w = (
            width if side == width or length < _ALIKE * finest else 1
            for side, length in zip(kernel, spacing, strict=True)
        )
        kernel = d, h, w
        kernels.append(kernel)
        strides.append(stride)
        z, y, x = (length * n for length, n in zip(spacing, stride, strict=True))
        spacing, shape = (z, y, x), halved_on(shape, stride)
    return (*kernels, (width, width, width)), tuple(strides)


def _stride(spacing: Spacing, shape: Triple) -> Triple:
    """What the next halving divides the sides by; 1, 1, 1 where there is none.

    The axes with the finest spacing of those that are long enough are halved; one axis alone only while it is half as
    long again.
    """
    long_enough = [axis for axis in range(3) if shape[axis] >= 2 * LEAST_SIDE]
    finest = min((spacing[axis] for axis in long_enough), default=0.0)
    axes = [axis for axis in long_enough if spacing[axis] < _ALIKE * finest]
    if len(axes) == 1 and shape[axes[0]] < 3 * LEAST_SIDE:
        axes = []
    d, h, w = (2 if axis in axes else 1 for axis in range(3))
    return d, h, w


def is_anisotropic(spacing: Spacing) -> bool:
    """Whether voxels are twice as long on one axis as on another, or more."""
    return max(spacing) >= _ALIKE * min(spacing)
