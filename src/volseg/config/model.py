"""The settings of a network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range
from volseg.errors import ConfigError

MAX_CHANNELS = 320
MOST_CLASSES = 254
"""With the background: masks and targets have 8 bits a voxel, of which 255 says that a voxel does not count."""

_RESENC_BLOCKS = (1, 3, 4, 6)
"""Residual blocks of each level of nnU-Net's ResEnc presets, finest first; deeper levels have as many as the last."""


@dataclass(frozen=True)
class ModelConfig:
    """A 3D U-Net.

    in_channels    image channels; 0: as many as the data set has
    classes        output classes, the background included; 0: as many as the data set has
    base_channels  channels at full resolution; doubled at each level up to 320
    levels         halvings of the resolution (levels + 1 resolutions)
    encoder        plain (two convolutions a level) or residual (residual blocks; several times the memory and time)
    blocks         residual blocks of each level of the encoder, finest first; empty: 1, 3, 4, 6, 6, ... as nnU-Net's
                   ResEnc presets
    kernel_size    side of the convolutions, odd
    norm           instance, group, batch or none
    activation     leaky_relu or relu
    up             transpose (2x2x2 up-convolution), trilinear or nearest (after a 1x1x1 convolution)
    dropout        probability of dropping a channel at the end of each level's convolutions
    """

    in_channels: int = 0
    classes: int = 0
    base_channels: int = 16
    levels: int = 3
    encoder: Literal["plain", "residual"] = "plain"
    blocks: tuple[int, ...] = ()
    kernel_size: int = 3
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    up: Literal["transpose", "trilinear", "nearest"] = "transpose"
    dropout: float = 0.0

    @property
    def multiple(self) -> int:
        """What every side of the volume is padded to a multiple of: 2^levels."""
        return int(2**self.levels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels per resolution, finest first."""
        return tuple(min(MAX_CHANNELS, self.base_channels * 2**n) for n in range(self.levels + 1))

    @property
    def block_counts(self) -> tuple[int, ...]:
        """Residual blocks per resolution, finest first; none in a plain encoder."""
        if self.encoder == "plain":
            return (0,) * (self.levels + 1)
        return self.blocks or tuple(_RESENC_BLOCKS[min(n, len(_RESENC_BLOCKS) - 1)] for n in range(self.levels + 1))

    def for_data(self, in_channels: int, classes: int) -> ModelConfig:
        """The model for a data set. Raises ConfigError where the configuration asks for other numbers."""
        for name, asked, found in (("in_channels", self.in_channels, in_channels), ("classes", self.classes, classes)):
            if asked not in (0, found):
                raise ConfigError(
                    f"model.{name} = {asked}, but the data set has {found}; leave it out, or use another data set"
                )
        if classes < 2:
            raise ConfigError(
                "the data set has only one class, the background; name at least one more in dataset.json's labels"
            )
        return dataclasses.replace(self, in_channels=in_channels, classes=classes)

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range(
            "model", self, in_channels=(0, 64), classes=(0, MOST_CLASSES), base_channels=(1, 320), levels=(0, 8)
        )
        check_range("model", self, kernel_size=(1, 11), dropout=(0.0, 0.99))
        if self.blocks and self.encoder == "plain":
            raise ConfigError(
                f"model.blocks = {list(self.blocks)}: a plain encoder has none; set encoder = 'residual', or leave it "
                "out"
            )
        if self.blocks and (len(self.blocks) != self.levels + 1 or not all(1 <= n <= 32 for n in self.blocks)):
            raise ConfigError(
                f"model.blocks = {list(self.blocks)} must be {self.levels + 1} numbers of 1 to 32, one for each of the "
                f"resolutions that levels = {self.levels} gives, or empty"
            )
        if self.classes == 1:
            raise ConfigError("model.classes = 1 leaves only the background; use 2 or more, or leave it out")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"model.kernel_size = {self.kernel_size} is even; use an odd one, such as 3")
        if self.norm == "group" and any(w % min(8, w) for w in self.widths):
            raise ConfigError(
                f"model.norm = 'group' needs channels in multiples of 8, not {self.widths}; set base_channels"
            )
