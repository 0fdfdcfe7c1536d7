"""The settings of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range
from volseg.errors import ConfigError
from volseg.geometry import Triple, format_triples

MAX_CHANNELS = 320
_SIDES, _MOST_FEATURES = (1, 3, 5, 7), 2048
"""What `kernels` and `features` may be."""

MOST_CLASSES = 254
"""With the background: masks and targets have 8 bits a voxel, of which 255 says that a voxel does not count."""

_RESENC_BLOCKS, _SEGRESNET_BLOCKS = (1, 3, 4, 6), (1, 2, 2, 4)
"""Residual blocks of each level of nnU-Net's ResEnc presets and of MONAI's SegResNet, finest first; deeper levels have
as many as the last."""

_OF_UNETS = ("encoder", "down", "convolutions", "dropout")
"""Settings that only a U-Net has."""


@dataclass(frozen=True)
class ModelConfig:
    """A 3D network.

    in_channels    image channels; 0: as many as the data set has
    classes        output classes, the background included, or regions; 0: as many as the data set has
    base_channels  channels at full resolution; doubled at each level up to 320
    levels         halvings of the resolution (levels + 1 resolutions)
    encoder        plain (two convolutions a level) or residual (residual blocks; 1.4 times the memory, twice the time)
    blocks         residual blocks of each level of the encoder, finest first; empty: 1, 3, 4, 6, 6, ... as nnU-Net's
                   ResEnc presets, or 1, 2, 2, 4, 4, ... in a segresnet
    kernel_size    side of the convolutions, odd
    norm           instance, group, batch or none
    activation     leaky_relu, relu, silu, gelu, gelu_tanh (what approximates gelu by a hyperbolic tangent) or sigmoid
    up             transpose (up-convolution of 2x2x2, or as `strides` say), trilinear or nearest (after a 1x1x1
                   convolution)
    dropout        probability of dropping a channel at the end of each level's convolutions
    anisotropy     auto: a new run whose voxels are twice as long on one axis as on another, or more, gets kernels and
                   strides by the data's spacing and shape, and at most `levels` halvings; none: all axes alike.
                   Of no account where kernels or strides are set
    kernels        sizes of each resolution's convolutions on D, H, W, finest first, each 1, 3, 5 or 7, such as
                   [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]; empty: kernel_size on each axis
    strides        what each halving divides D, H, W by, each 1 or 2, such as [[1, 2, 2], [2, 2, 2], [2, 2, 2]];
                   empty: 2 on each axis
    features       channels at each resolution, finest first; empty: by base_channels
    convolutions   convolutions at each resolution, in the decoder and in a plain encoder
    down           pool (2x2x2 maximum, or as `strides` say) or stride (the first convolution of a resolution takes
                   every second voxel)
    architecture   unet, or segresnet (Myronenko 2018, as MONAI has it: residual blocks of norm, activation and
                   convolution, strided convolutions down, skip connections by addition), which has no encoder, down,
                   convolutions or dropout to set; imported: a network that comes with its weights or from a module,
                   described beside them
    """

    in_channels: int = 0
    classes: int = 0
    base_channels: int = 16
    levels: int = 3
    encoder: Literal["plain", "residual"] = "plain"
    blocks: tuple[int, ...] = ()
    kernel_size: int = 3
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    activation: Literal["leaky_relu", "relu", "silu", "gelu", "gelu_tanh", "sigmoid"] = "leaky_relu"
    up: Literal["transpose", "trilinear", "nearest"] = "transpose"
    dropout: float = 0.0
    anisotropy: Literal["auto", "none"] = "auto"
    kernels: tuple[Triple, ...] = ()
    strides: tuple[Triple, ...] = ()
    features: tuple[int, ...] = ()
    convolutions: int = 2
    down: Literal["pool", "stride"] = "pool"
    architecture: Literal["unet", "segresnet", "imported"] = "unet"

    @property
    def halvings(self) -> tuple[Triple, ...]:
        """What each halving divides the sides by, per axis: as many as there are levels."""
        return self.strides or ((2, 2, 2),) * self.levels

    @property
    def stage_kernels(self) -> tuple[Triple, ...]:
        """Sides of each resolution's convolutions, finest first."""
        return self.kernels or ((self.kernel_size, self.kernel_size, self.kernel_size),) * (self.levels + 1)

    @property
    def factors(self) -> tuple[Triple, ...]:
        """How many voxels of the finest resolution one of each stands for, per axis, finest first."""
        totals = [(1, 1, 1)]
        for stride in self.halvings:
            d, h, w = (a * b for a, b in zip(totals[-1], stride, strict=True))
            totals.append((d, h, w))
        return tuple(totals)

    @property
    def multiple(self) -> Triple:
        """What the sides of the volume are padded to a multiple of, per axis: the product of the strides."""
        return self.factors[-1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per resolution, finest first."""
        if self.features:
            return self.features
        return tuple(min(MAX_CHANNELS, self.base_channels * 2**n) for n in range(self.levels + 1))

    @property
    def block_counts(self) -> tuple[int, ...]:
        """Residual blocks per resolution, finest first; none in a plain encoder."""
        if self.architecture == "unet" and self.encoder == "plain":
            return (0,) * (self.levels + 1)
        usual = _RESENC_BLOCKS if self.architecture == "unet" else _SEGRESNET_BLOCKS
        return self.blocks or tuple(usual[min(n, len(usual) - 1)] for n in range(self.levels + 1))

    def for_data(self, in_channels: int, classes: int, regions: bool = False) -> ModelConfig:
        """The model for a data set. Raises ConfigError where the configuration asks for other numbers.

        regions  whether the classes are regions, of which one alone can be learned
        """
        for name, asked, found in (("in_channels", self.in_channels, in_channels), ("classes", self.classes, classes)):
            if asked not in (0, found):
                raise ConfigError(
                    f"model.{name} = {asked}, but the data set has {found}; leave it out, or use another data set"
                )
        if classes < 2 and not regions:
            raise ConfigError(
                "the data set has only one class, the background; name at least one more in dataset.json's labels"
            )
        return dataclasses.replace(self, in_channels=in_channels, classes=classes)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range(
            "model", self, in_channels=(0, 64), classes=(0, MOST_CLASSES), base_channels=(1, 320), levels=(0, 8)
        )
        check_range("model", self, kernel_size=(1, 11), dropout=(0.0, 0.99), convolutions=(1, 8))
        self._check_stages()
        self._check_architecture()
        if self.blocks and (len(self.blocks) != self.levels + 1 or not all(1 <= n <= 32 for n in self.blocks)):
            raise ConfigError(
                f"model.blocks = {list(self.blocks)} must be {self.levels + 1} numbers of 1 to 32, one for each of the "
                f"resolutions that levels = {self.levels} gives, or empty"
            )
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size = {self.kernel_size} is even; use an odd one, such as 3")
        if self.norm == "group" and any(w % min(8, w) for w in self.widths):
            raise ConfigError(
                f"model.norm = 'group' needs channels in multiples of 8, not {self.widths}; set base_channels"
            )

    def _check_architecture(self) -> None:
        """Raise ConfigError for a setting that the architecture does not have."""
        if self.architecture == "unet" and self.blocks and self.encoder == "plain":
            raise ConfigError(
                f"model.blocks = {list(self.blocks)}: a plain encoder has none; set encoder = 'residual', or leave it "
                "out"
            )
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if self.architecture != "unet" and one.name in _OF_UNETS and value != one.default:
                raise ConfigError(
                    f"model.{one.name} = {value!r}: a {self.architecture} has no such setting; leave it out, or set "
                    "architecture = 'unet'"
                )

    def _check_stages(self) -> None:
        """Raise ConfigError where a list does not have a value for each resolution, or one out of range."""
        resolutions, of = self.levels + 1, f"levels = {self.levels}"
        _check_count("kernels", self.kernels, resolutions, f"{of} gives resolutions")
        _check_count("strides", self.strides, self.levels, f"{of} gives halvings")
        _check_count("features", self.features, resolutions, f"{of} gives resolutions")
        for kernel in self.kernels:
            if not all(side in _SIDES for side in kernel):
                raise ConfigError(f"model.kernels: {list(kernel)} must be three of 1, 3, 5 and 7, on D, H and W")
        for stride in self.strides:
            if not all(side in (1, 2) for side in stride) or stride == (1, 1, 1):
                raise ConfigError(f"model.strides: {list(stride)} must be three of 1 and 2, on D, H and W, and one a 2")
        if any(not 1 <= width <= _MOST_FEATURES for width in self.features):
            raise ConfigError(f"model.features = {list(self.features)} must be numbers of 1 to {_MOST_FEATURES}")
        if self.kernels and self.kernel_size != 3:
            raise ConfigError(
                f"model.kernel_size = {self.kernel_size} and model.kernels = {format_triples(self.kernels)}: both say "
                "how large the convolutions are; leave out either"
            )


def _check_count(name: str, values: Sequence[object], count: int, what: str) -> None:
    """Raise ConfigError where there are values, but not `count` of them."""
    if values and len(values) != count:
        raise ConfigError(
            f"model.{name} has {len(values)} entries, but {what}: {count}; give as many, set levels, or leave it out"
        )
