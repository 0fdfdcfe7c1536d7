"""Public 3D segmentation networks through `describe` and `partition_module`: taken or refused, and how exactly.

    python benchmarks/networks_of_others.py [NAME ...]            # or under mpirun -n 2
    PYTHONPATH=src:SITE_PACKAGES_WITH_MONAI_AND_NNUNET python benchmarks/networks_of_others.py

For each network one line: whether it has a description (else the operation that it is refused for), whether the fused
kernels cover that (else the first node that they do not), and how far the description's network in float64 on this
many ranks lies from the module on one. Networks of a package that is not installed are left out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.launch import connect
from volseg.errors import PartitionError, VolsegError
from volseg.geometry import Triple
from volseg.models.described import DescribedModule
from volseg.models.exported import describe, state_for
from volseg.networks.coverage import why_not_covered
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module

SIDES: Triple = (64, 64, 64)
GRIDS: dict[int, Triple] = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}
Maker = Callable[[], nn.Module]


def of_nnunet() -> dict[str, Maker]:
    """nnU-Net's networks, isotropic and anisotropic."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet

    settings = {
        "conv_bias": True, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
    }  # fmt: skip
    wide, flat = ([3, 3, 3], [1, 2, 2]), ([[1, 3, 3], 3, 3], [1, [1, 2, 2], 2])

    def plain(kernels: list, strides: list) -> nn.Module:
        return PlainConvUNet(1, 3, [8, 16, 32], nn.Conv3d, kernels, strides, 2, 3, 2, **settings)

    def residual(kind: type, kernels: list, strides: list) -> nn.Module:
        return kind(1, 3, [8, 16, 32], nn.Conv3d, kernels, strides, [1, 2, 2], 3, [1, 1], **settings)

    return {
        "nnU-Net PlainConvUNet": lambda: plain(*wide),
        "nnU-Net PlainConvUNet, anisotropic": lambda: plain(*flat),
        "nnU-Net ResidualEncoderUNet": lambda: residual(ResidualEncoderUNet, *wide),
        "nnU-Net ResidualEncoderUNet, anisotropic": lambda: residual(ResidualEncoderUNet, *flat),
        "nnU-Net ResidualUNet": lambda: residual(ResidualUNet, *wide),
    }


def of_monai() -> dict[str, Maker]:
    """MONAI's networks that segment volumes."""
    from monai.networks import nets

    three = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    strided = {"channels": (8, 16, 32), "strides": (2, 2)}
    kernels = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
    features = (8, 8, 16, 32, 64, 8)
    return {
        "MONAI UNet": lambda: nets.UNet(**three, **strided),
        "MONAI UNet, residual, batch norm": lambda: nets.UNet(**three, **strided, num_res_units=2, norm="batch"),
        "MONAI BasicUNet": lambda: nets.BasicUNet(**three, features=features),
        "MONAI BasicUNet, pixel shuffle": lambda: nets.BasicUNet(**three, features=features, upsample="pixelshuffle"),
        "MONAI BasicUNet, trilinear": lambda: nets.BasicUNet(**three, features=features, upsample="nontrainable"),
        "MONAI BasicUNetPlusPlus": lambda: nets.BasicUNetPlusPlus(**three, features=features),
        "MONAI DynUNet": lambda: nets.DynUNet(**three, **kernels, filters=[8, 16, 32]),
        "MONAI DynUNet, residual, deep": lambda: nets.DynUNet(
            **three, **kernels, filters=[8, 16, 32], res_block=True, deep_supervision=True, deep_supr_num=1
        ),
        "MONAI SegResNet": lambda: nets.SegResNet(**three, init_filters=8),
        "MONAI SegResNet, transposed": lambda: nets.SegResNet(**three, init_filters=8, upsample_mode="deconv"),
        "MONAI SegResNetVAE": lambda: nets.SegResNetVAE(
            input_image_size=SIDES, spatial_dims=3, in_channels=1, out_channels=3, init_filters=8
        ),
        "MONAI SegResNetDS": lambda: nets.SegResNetDS(
            spatial_dims=3, init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 2, 2), dsdepth=2
        ),
        "MONAI SegResNetDS2": lambda: nets.SegResNetDS2(
            spatial_dims=3, init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 2, 2), dsdepth=2
        ),
        "MONAI AttentionUnet": lambda: nets.AttentionUnet(**three, **strided),
        "MONAI VNet": lambda: nets.VNet(spatial_dims=3, in_channels=1, out_channels=3),
        "MONAI HighResNet": lambda: nets.HighResNet(spatial_dims=3, in_channels=1, out_channels=3),
        "MONAI RegUNet": lambda: nets.RegUNet(
            spatial_dims=3, in_channels=1, num_channel_initial=8, depth=2, out_channels=3
        ),
        "MONAI FlexibleUNet": lambda: nets.FlexibleUNet(
            in_channels=1, out_channels=3, backbone="resnet10", spatial_dims=3, pretrained=False
        ),
        "MONAI UNETR": lambda: nets.UNETR(
            in_channels=1, out_channels=3, img_size=SIDES, feature_size=8, hidden_size=48, num_heads=4
        ),
        "MONAI SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=12),
        "MONAI DiNTS": lambda: dints(nets),
        "MONAI CascadeUNet (MedNeXt S)": lambda: nets.MedNeXtS(**three),
        "MONAI AHNet": lambda: nets.AHNet(spatial_dims=3, in_channels=1, out_channels=3, upsample_mode="nearest"),
        "MONAI DenseNet-like ResUNet (DAF3D)": lambda: nets.DAF3D(in_channels=1, out_channels=3),
        "MONAI VoxelMorphUNet": lambda: nets.VoxelMorphUNet(
            spatial_dims=3, in_channels=2, unet_out_channels=3, channels=(8, 8, 8, 8, 8, 8), final_conv_channels=(8, 8)
        ),
    }


def dints(nets: object) -> nn.Module:
    """MONAI's searched network, with every second connection."""
    space = nets.TopologyInstance(num_blocks=4, device="cpu")  # type: ignore[attr-defined]
    return nets.DiNTS(space, in_channels=1, num_classes=3, use_downsample=True)  # type: ignore[attr-defined]


def networks() -> dict[str, Maker]:
    """Those of the packages that are installed."""
    made: dict[str, Maker] = {}
    for package in (of_nnunet, of_monai):
        try:
            made |= package()
        except ImportError as error:
            print(f"left out: {error}")
    return made


def logits_of(output: Tensor | list[Tensor]) -> Tensor:
    """The first output at the volume's own sides."""
    outputs = [output] if isinstance(output, Tensor) else list(output)
    if not isinstance(outputs[0], Tensor):
        outputs = [part for some in outputs for part in some]
    return next(part for part in outputs if part.dim() == 5 and tuple(part.shape[2:]) == SIDES)


def verdict(module: nn.Module, channels: int, grid: ProcessGrid) -> str:
    """What is printed of a network of so many image channels. Collective."""
    module.eval()
    try:
        network = describe(module, channels, SIDES)
    except PartitionError as refusal:
        return f"refused    {refusal}"
    model = DescribedModule(network).eval()
    model.load_state_dict(state_for(network, module))
    whole = torch.randn((1, channels, *SIDES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layout = grid.layout(SIDES, network.multiple)
    twin = partition_module(model.double(), grid, network.multiple)
    with torch.no_grad():
        expected = logits_of(module.double()(whole))
        y = gather_blocks(twin(take_block(whole, grid, layout)), grid)
    error = float((y - expected).abs().max() / expected.abs().max())
    covered = why_not_covered(network) or "all"
    return f"taken      off by {error:.0e}; kernels: {covered}"


def main() -> None:
    """Print a line for each network."""
    warnings.simplefilter("ignore")
    communicator = connect()
    grid = ProcessGrid(communicator, GRIDS[communicator.size])
    taken = tried = 0
    for name, maker in networks().items():
        if sys.argv[1:] and not any(part.lower() in name.lower() for part in sys.argv[1:]):
            continue
        torch.manual_seed(0)
        try:
            line = verdict(maker(), 2 if "VoxelMorph" in name else 1, grid)
        except (VolsegError, TypeError, AttributeError, ValueError, RuntimeError, OSError, ImportError) as error:
            line = f"failed     {type(error).__name__}: {str(error).splitlines()[0]}"
        tried, taken = tried + 1, taken + line.startswith("taken")
        if communicator.is_root:
            print(f"{name:42} {line}", flush=True)
    if communicator.is_root:
        print(f"{taken} of {tried} taken")


if __name__ == "__main__":
    main()
