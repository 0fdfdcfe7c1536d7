"""The 3D U-Net: a plain torch module, the same code on one rank or many.

Ronneberger, Fischer & Brox, "U-Net" (MICCAI 2015); Cicek et al., "3D U-Net" (MICCAI 2016): two convolutions with norm
and activation per level, max-pooling down, up-convolution, skip connections by concatenation. With residual blocks in
the encoder as nnU-Net's ResEnc presets (Isensee et al., "nnU-Net Revisited", MICCAI 2024), but for the pooling, where
theirs have strides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volseg.config import ModelConfig
from volseg.networks.deep_supervision import deep_levels

DEEP_HEADS = "deep_heads."
"""What the names of parameters begin with that are for training alone."""


class UNet(nn.Module):
    """A 3D U-Net of `config.levels` halvings.

    x       [N, in_channels, D, H, W]  sides multiples of 2^levels
    logits  [N, classes, D, H, W]

    deep_supervision  with a head at each coarser level where the loss is taken (`networks.deep_supervision`); the
                      other parameters and the logits are what they are without
    """

    def __init__(self, config: ModelConfig, deep_supervision: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.widths
        below = (config.in_channels, *width[:-1])
        self.encoder = nn.ModuleList(
            _residual_blocks(a, b, count, config) if count else _double_convolution(a, b, config)
            for a, b, count in zip(below, width, config.block_counts, strict=True)
        )
        self.down = nn.ModuleList(nn.MaxPool3d(2) for _ in range(config.levels))
        self.up = nn.ModuleList(_up(width[n + 1], width[n], config) for n in range(config.levels))
        self.decoder = nn.ModuleList(_double_convolution(2 * width[n], width[n], config) for n in range(config.levels))
        self.head = nn.Conv3d(width[0], config.classes, 1)
        self.apply(_initialise)
        self.deep_heads = nn.ModuleDict()
        for level in deep_levels(config.levels) if deep_supervision else ():
            self.deep_heads[str(level)] = nn.Conv3d(width[level], config.classes, 1)
        self.deep_heads.apply(_initialise)

    def forward(self, x: Tensor, features_only: bool = False, deep_logits: dict[int, Tensor] | None = None) -> Tensor:
        """Logits; with `features_only` what the head reads, [N, base_channels, D, H, W].

        deep_logits  where given, the logits of the coarser levels go there, by level
        """
        skips = []
        for level in range(self.config.levels):
            x = self.encoder[level](x)
            skips.append(x)
            x = self.down[level](x)
        x = self.encoder[self.config.levels](x)
        for level in reversed(range(self.config.levels)):
            x = self.up[level](x)
            x = torch.cat([skips.pop(), x], dim=1)
            x = self.decoder[level](x)
            if deep_logits is not None and str(level) in self.deep_heads:
                deep_logits[level] = self.deep_heads[str(level)](x)
        return x if features_only else self.head(x)


class ResidualBlock(nn.Module):
    """``activation(norm(conv(activation(norm(conv(x))))) + skip(x))`` (He et al., CVPR 2016).

    x  [N, inputs, D, H, W]
    y  [N, outputs, D, H, W]

    The skip is x itself, or, where channels change, a 1x1x1 convolution of it with a norm.
    """

    def __init__(self, inputs: int, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        first, second = _convolution(inputs, outputs, config), _convolution(outputs, outputs, config)
        self.body = nn.Sequential(*first, *second[:-1])
        self.skip: nn.Module = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Sequential(nn.Conv3d(inputs, outputs, 1, bias=config.norm == "none"), _norm(outputs, config))
        self.activation = _activation(config)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.body(x) + self.skip(x))
        return y


def _residual_blocks(inputs: int, outputs: int, count: int, config: ModelConfig) -> nn.Sequential:
    blocks = [ResidualBlock(inputs if n == 0 else outputs, outputs, config) for n in range(count)]
    return nn.Sequential(*blocks, *_dropout(config))


def _double_convolution(inputs: int, outputs: int, config: ModelConfig) -> nn.Sequential:
    first, second = _convolution(inputs, outputs, config), _convolution(outputs, outputs, config)
    return nn.Sequential(*first, *second, *_dropout(config))


def _convolution(inputs: int, outputs: int, config: ModelConfig) -> list[nn.Module]:
    """With its norm and activation."""
    conv = nn.Conv3d(inputs, outputs, config.kernel_size, padding="same", bias=config.norm == "none")
    return [conv, _norm(outputs, config), _activation(config)]


def _dropout(config: ModelConfig) -> list[nn.Module]:
    return [nn.Dropout3d(config.dropout)] if config.dropout > 0 else []


def _norm(channels: int, config: ModelConfig) -> nn.Module:
    if config.norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if config.norm == "group":
        return nn.GroupNorm(min(8, channels), channels)
    return nn.BatchNorm3d(channels) if config.norm == "batch" else nn.Identity()


def _activation(config: ModelConfig) -> nn.Module:
    return nn.LeakyReLU(0.01) if config.activation == "leaky_relu" else nn.ReLU()


def _up(inputs: int, outputs: int, config: ModelConfig) -> nn.Module:
    if config.up == "transpose":
        return nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
    return nn.Sequential(nn.Conv3d(inputs, outputs, 1), nn.Upsample(scale_factor=2, mode=config.up))


def _initialise(module: nn.Module) -> None:
    """He initialisation (He et al., ICCV 2015) of the convolutions, for leaky ReLU."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
