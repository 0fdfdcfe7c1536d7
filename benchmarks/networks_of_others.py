"""Public 3D segmentation networks through `describe` and `partition_module`: taken or refused, and how exactly.

    python benchmarks/networks_of_others.py [--sides 64x64x64] [NAME ...]            # or under mpirun -n 2, 4, 8
    PYTHONPATH=src:SITE_PACKAGES_WITH_MONAI_AND_NNUNET python benchmarks/networks_of_others.py

For each network one line: whether it has a description (else the operation that it is refused for), whether the fused
kernels cover that (else the first node that they do not), and how far the description's network in float64 on this
many ranks lies from the module on one. Networks of a package that is not installed are left out. At the end: how many
were taken, and how many of these lie further off than `EXACT`.
"""

from __future__ import annotations

import argparse
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
from volseg.sizes import parse_shape

EXACT = 1e-11
"""Share of the largest logit by which sums in another order may differ in float64."""

GRIDS: dict[int, Triple] = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2)}
Maker = Callable[[], nn.Module]


def of_nnunet(sides: Triple) -> dict[str, Maker]:
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


def of_monai(sides: Triple) -> dict[str, Maker]:
    """MONAI's networks that segment or deform volumes; some are made for volumes of `sides`."""
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
            input_image_size=sides, spatial_dims=3, in_channels=1, out_channels=3, init_filters=8
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
            in_channels=1, out_channels=3, img_size=sides, feature_size=8, hidden_size=48, num_heads=4
        ),
        "MONAI SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=12),
        "MONAI DiNTS": lambda: dints(nets),
        "MONAI MedNeXt S": lambda: nets.MedNeXtS(**three),
        "MONAI AHNet": lambda: nets.AHNet(spatial_dims=3, in_channels=1, out_channels=3, upsample_mode="nearest"),
        "MONAI LocalNet": lambda: nets.LocalNet(
            spatial_dims=3, in_channels=1, out_channels=3, num_channel_initial=8, extract_levels=(0, 1, 2)
        ),
        "MONAI VoxelMorphUNet": lambda: nets.VoxelMorphUNet(
            spatial_dims=3, in_channels=2, unet_out_channels=3, channels=(8, 8, 8, 8, 8, 8), final_conv_channels=(8, 8)
        ),
    }


def dints(nets: object) -> nn.Module:
    """MONAI's searched network, with every second connection."""
    space = nets.TopologyInstance(num_blocks=4, device="cpu")  # type: ignore[attr-defined]
    return nets.DiNTS(space, in_channels=1, num_classes=3, use_downsample=True)  # type: ignore[attr-defined]


def networks(sides: Triple) -> dict[str, Maker]:
    """Those of the packages that are installed."""
    made: dict[str, Maker] = {}
    for package in (of_nnunet, of_monai):
        try:
            made |= package(sides)
        except ImportError as error:
            print(f"left out: {error}")
    return made


def logits_of(output: Tensor | list[Tensor], sides: Triple) -> Tensor:
    """The first output at the volume's own sides."""
    outputs = [output] if isinstance(output, Tensor) else list(output)
    if not isinstance(outputs[0], Tensor):
        outputs = [part for some in outputs for part in some]
    return next(part for part in outputs if part.dim() == 5 and tuple(part.shape[2:]) == sides)


def verdict(module: nn.Module, channels: int, sides: Triple, grid: ProcessGrid) -> tuple[str, float | None]:
    """What is printed of a network of so many image channels, and how far it is off where it is taken. Collective."""
    module.eval()
    on_root = grid.communicator.on_root
    try:
        network = on_root(lambda: describe(module, channels, sides))
    except PartitionError as refusal:
        return f"refused    {refusal}", None
    model = DescribedModule(network).eval()
    model.load_state_dict(state_for(network, module))
    whole = torch.randn((1, channels, *sides), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layout = grid.layout(sides, network.multiple)
    twin = partition_module(model.double(), grid, network.multiple)
    with torch.no_grad():
        expected = on_root(lambda: logits_of(module.double()(whole), sides))
        y = gather_blocks(twin(take_block(whole, grid, layout)), grid)
    error = float((y - expected).abs().max() / expected.abs().max())
    return f"taken      off by {error:.0e}; kernels: {why_not_covered(network) or 'all'}", error


def main() -> None:
    """Print a line for each network."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a network's name (default: all)")
    parser.add_argument("--sides", default="64x64x64", help="voxels of the volume, DxHxW (default: %(default)s)")
    options = parser.parse_args()
    sides = parse_shape(options.sides, "--sides")
    communicator = connect()
    grid = ProcessGrid(communicator, GRIDS[communicator.size])
    errors, tried = [], 0
    for name, maker in networks(sides).items():
        if options.names and not any(part.lower() in name.lower() for part in options.names):
            continue
        torch.manual_seed(0)
        error = None
        try:
            line, error = verdict(maker(), 2 if "VoxelMorph" in name else 1, sides, grid)
        except (VolsegError, TypeError, AttributeError, ValueError, RuntimeError, OSError, ImportError) as failure:
            line = f"failed     {type(failure).__name__}: {str(failure).splitlines()[0]}"
        tried += 1
        errors += [] if error is None else [error]
        if communicator.is_root:
            print(f"{name:42} {line}", flush=True)
    if communicator.is_root:
        wrong = sum(not error <= EXACT for error in errors)
        print(f"{len(errors)} of {tried} taken, {wrong} of them off by more than {EXACT:.0e}")


if __name__ == "__main__":
    main()
