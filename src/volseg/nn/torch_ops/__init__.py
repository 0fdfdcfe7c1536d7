"""Programs executed by torch's operators, on any device (`nn.fused.backend.Backend`).

Tensors lie in rows as the compiled kernels have them, which for torch are channels-last tensors. Between two stores all
is float32, and convolutions of bfloat16 tensors get bfloat16.
"""

from __future__ import annotations

import torch

from volseg.nn.torch_ops.block_convolution import TorchBlockConvolutions
from volseg.nn.torch_ops.interpolation import TorchInterpolation
from volseg.nn.torch_ops.passes import TorchAddition, TorchPasses
from volseg.nn.torch_ops.point_convolution import TorchPointConvolutions
from volseg.nn.torch_ops.pooling import TorchAveraging, TorchPooling
from volseg.nn.torch_ops.workspace import Workspace

__all__ = ["TorchBackend"]


class TorchBackend:
    """The functions of a device.

    limit  bytes of a window, about (`partition.windows_by_torch`)
    """

    name = "torch's operators"

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.work = Workspace(device, limit)
        self.blocks = TorchBlockConvolutions(self.work)
        self.points = TorchPointConvolutions(self.work)
        self.pooling, self.averaging = TorchPooling(self.work), TorchAveraging(self.work)
        self.addition, self.passes = TorchAddition(self.work), TorchPasses(self.work)
        self.interpolation = TorchInterpolation(self.work)

    @property
    def device(self) -> torch.device:
        """On which all lies."""
        return self.work.device
