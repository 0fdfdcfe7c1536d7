"""nnU-Net results, written by hand as its trainer writes them, become run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnunet_folders import (
    CT,
    architecture,
    checkpoint,
    dataset,
    old_architecture,
    plans,
    random_weights,
    result_folder,
    zipped,
)
from volseg.api import import_model
from volseg.errors import CheckpointError, ConfigError, VolsegError
from volseg.models.stored import WEIGHTS, fold_path, load_model, load_tensors
from volseg.networks.nnunet_plan import architecture_of, configuration_of
from volseg.volumes.intensity import ChannelScheme, Normalization
from volseg.volumes.regions import Region


def weights(of_plans=None, channels: int = 1, classes: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    of = architecture_of(configuration_of(of_plans or plans(), "3d_fullres", "plans"), "plans")
    return random_weights(of, channels, classes, seed)


def test_weights_network_and_reading_of_scans_are_those_of_the_result(tmp_path: Path) -> None:
    folder = result_folder(tmp_path)
    import_model(folder, tmp_path / "run")
    tensors, card = load_tensors(tmp_path / "run" / WEIGHTS)
    expected = weights()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    assert card.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert card.spacing == card.seen_at == (3.0, 1.0, 0.9)
    assert card.schemes == (ChannelScheme("CT", Normalization(-200.0, 300.0, 20.0, 150.0)),)
    origin = card.origin
    assert origin is not None
    assert (origin.tool, origin.window, origin.mirrored) == ("nnunet", (8, 16, 16), (0, 1, 2))
    assert (origin.order, origin.transpose, origin.crop, origin.cubic) == ("stored", (0, 1, 2), True, True)
    assert (origin.folds, origin.source) == ((), "Dataset007_Tiny, 3d_fullres, fold 0")
    model, _ = load_model(tmp_path / "run")
    assert model(torch.randn(1, 1, 4, 16, 16)).shape == (1, 3, 4, 16, 16)


@pytest.mark.parametrize("source", ["trained", "data set", "above", "zip"])
def test_each_place_of_a_result_can_be_named(source: str, tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "results")
    place = {"trained": folder, "data set": folder.parent, "above": tmp_path / "results"}.get(source)
    place = place or zipped(folder.parent, tmp_path / "exported.zip")
    imported = import_model(place, tmp_path / "run")
    assert imported.facts["configuration"] == "3d_fullres"
    assert load_tensors(tmp_path / "run" / WEIGHTS)[1].spacing == (3.0, 1.0, 0.9)


def test_older_plans_say_the_same(tmp_path: Path) -> None:
    old, new = (configuration_of(plans(of), "3d_fullres", "plans") for of in (old_architecture(), None))
    assert architecture_of(old, "plans") == architecture_of(new, "plans")
    result_folder(tmp_path, plans(old_architecture()))
    import_model(tmp_path, tmp_path / "run")


@pytest.mark.parametrize("name", ["ResidualEncoderUNet", "ResidualUNet"])
def test_residual_networks(name: str, tmp_path: Path) -> None:
    of_plans = plans({"architecture": architecture(name)})
    result_folder(tmp_path, of_plans)
    import_model(tmp_path, tmp_path / "run")
    tensors, _ = load_tensors(tmp_path / "run" / WEIGHTS)
    assert "encoder.stem.convs.0.conv.weight" in tensors
    assert tensors.keys() == weights(of_plans).keys()


def test_all_folds_or_those_that_are_asked_for(tmp_path: Path) -> None:
    result_folder(tmp_path, folds=("0", "1", "2", "all"))
    import_model(tmp_path, tmp_path / "each")
    folds = load_tensors(tmp_path / "each" / WEIGHTS)[1].origin.folds
    assert folds == (0, 1, 2)
    for fold in folds:
        tensors, card = load_tensors(fold_path(tmp_path / "each", fold, folds))
        assert card.origin.folds == folds
        assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(seed=fold).items())
    import_model(tmp_path, tmp_path / "some", folds="2,0")
    assert load_tensors(tmp_path / "some" / WEIGHTS)[1].origin.folds == (2, 0)
    import_model(tmp_path, tmp_path / "one", folds="all")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "config.toml", "report.json", "weights.safetensors"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"--folds 0,4: .* holds fold_0/checkpoint_final, fold_1"):
        import_model(tmp_path, tmp_path / "none", folds="0,4")
    with pytest.raises(CheckpointError, match="has no fold 7; it has 0, 1, 2"):
        fold_path(tmp_path, 7, folds)


def test_regions_and_an_ignore_label(tmp_path: Path) -> None:
    named = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4}
    result_folder(tmp_path, of_dataset=dataset(named, regions_class_order=[1, 2, 3]))
    import_model(tmp_path, tmp_path / "run")
    _, card = load_tensors(tmp_path / "run" / WEIGHTS)
    assert card.regions == (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3))
    assert card.labels == {"background": 0, "whole (1)": 1, "core (2)": 2, "enhancing": 3}


def test_an_ignore_label_is_no_class(tmp_path: Path) -> None:
    result_folder(tmp_path, of_dataset=dataset({"background": 0, "liver": 1, "ignore": 2}), classes=2)
    import_model(tmp_path, tmp_path / "run")
    assert load_tensors(tmp_path / "run" / WEIGHTS)[1].labels == {"background": 0, "liver": 1}


def test_each_way_to_normalise(tmp_path: Path) -> None:
    names = ["CTNormalization", "ZScoreNormalization", "ZScoreNormalization", "RescaleTo01Normalization"]
    names += ["RGBTo01Normalization", "NoNormalization"]
    of = plans(channels=6, normalization_schemes=names, use_mask_for_norm=[False, True, False, False, False, False])
    result_folder(tmp_path, of, dataset(channels=("CT", "T1", "T2", "PD", "R", "map")))
    import_model(tmp_path, tmp_path / "run")
    _, card = load_tensors(tmp_path / "run" / WEIGHTS)
    methods = [scheme.method for scheme in card.schemes if scheme.fixed is None]
    assert methods == ["zscore_nonzero", "zscore", "rescale"]
    fixed = [scheme.fixed for scheme in card.schemes]
    assert [rule.std for rule in fixed if rule is not None] == [CT["std"], 255.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": [16, 16]}, "a 2D configuration"),
        ({"previous_stage": "3d_lowres"}, "a cascade, which reads the masks of 3d_lowres"),
        ({"spacing": [1.0, -1.0, 1.0]}, "spacing = .* three numbers above 0"),
        ({"normalization_schemes": ["MyNormalization"]}, "MyNormalization"),
        ({"architecture": architecture("UNetWithAttention")}, "its network is .*UNetWithAttention"),
        ({"architecture": architecture(squeeze_excitation=True)}, "squeeze_excitation = True"),
        ({"architecture": architecture(kernel_sizes=4)}, "kernels of even sides"),
        ({"architecture": architecture(norm_op="torch.nn.GroupNorm")}, "norm_op = 'torch.nn.GroupNorm'"),
        ({"architecture": architecture(nonlin="os.system")}, "nonlin = 'os.system'"),
        ({"architecture": architecture(features_per_stage=[4, 8])}, "features_per_stage has 2 entries"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    folder = result_folder(tmp_path)
    (folder / "plans.json").write_text(json.dumps(plans(**changes)))
    with pytest.raises(ConfigError, match=message):
        import_model(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob(".run*"))


def test_of_several_configurations_the_usual_one_or_the_one_asked_for(tmp_path: Path) -> None:
    result_folder(tmp_path, configuration="3d_fullres")
    result_folder(tmp_path, configuration="3d_lowres")
    import_model(tmp_path, tmp_path / "usual")
    import_model(tmp_path, tmp_path / "low", configuration="3d_lowres")
    spacings = [load_tensors(tmp_path / run / WEIGHTS)[1].spacing for run in ("usual", "low")]
    assert spacings == [(3.0, 1.0, 0.9), (4.0, 2.0, 2.0)]
    with pytest.raises(ConfigError, match=r"--configuration 2d is not there; it holds .*3d_fullres.*3d_lowres"):
        import_model(tmp_path, tmp_path / "none", configuration="2d")


def test_a_best_checkpoint_alone_must_be_asked_for(tmp_path: Path) -> None:
    result_folder(tmp_path, kept="best")
    with pytest.raises(ConfigError, match="--checkpoint best"):
        import_model(tmp_path, tmp_path / "run")
    import_model(tmp_path, tmp_path / "run", checkpoint="best")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = result_folder(tmp_path)
    place = folder / "fold_0" / "checkpoint_final.pth"
    whole = weights()
    short = {name: tensor for name, tensor in whole.items() if name != "encoder.stages.0.0.convs.0.conv.bias"}
    torch.save(checkpoint(short), place)
    with pytest.raises(CheckpointError, match=r"encoder.stages.0.0.convs.0.conv.bias missing"):
        import_model(tmp_path, tmp_path / "run")
    torch.save(checkpoint({**whole, "decoder.gate": torch.ones(2)}), place)
    with pytest.raises(CheckpointError, match=r"decoder.gate of no use"):
        import_model(tmp_path, tmp_path / "run")
    torch.save(checkpoint({**whole, "decoder.seg_layers.1.bias": torch.full((3,), torch.nan)}), place)
    with pytest.raises(CheckpointError, match=r"decoder.seg_layers.1.bias holds values that are NaN"):
        import_model(tmp_path, tmp_path / "run")
    torch.save(
        checkpoint(whole, "3d_lowres") | {"network_weights": {"module." + n: t for n, t in whole.items()}}, place
    )
    import_model(tmp_path, tmp_path / "run")  # as training on several devices names them; it says its configuration


def test_an_import_is_replaced_when_asked_and_nothing_else_ever_is(tmp_path: Path) -> None:
    folder, run = result_folder(tmp_path), tmp_path / "run"
    import_model(folder, run)
    with pytest.raises(ConfigError, match="replace it with --overwrite"):
        import_model(folder, run)
    before = (run / WEIGHTS).read_bytes()
    torch.save(checkpoint(weights(seed=5)), folder / "fold_0" / "checkpoint_final.pth")
    import_model(folder, run, overwrite=True)
    assert (run / WEIGHTS).read_bytes() != before
    (run / "messages.txt").write_text("a training run\n")
    with pytest.raises(ConfigError, match=r"holds messages.txt, which is no imported model"):
        import_model(folder, run, overwrite=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"cut short")
    other = tmp_path / "other"
    with pytest.raises(VolsegError):
        import_model(folder, other)
    assert not other.exists()


def test_no_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder or zip"):
        import_model(tmp_path / "none", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no model that is known"):
        import_model(tmp_path / "empty", tmp_path / "run")
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(ConfigError, match="neither a folder nor a zip"):
        import_model(tmp_path / "file.txt", tmp_path / "run")


def test_norms_may_have_no_scales(tmp_path: Path) -> None:
    of = plans({"architecture": architecture(norm_op_kwargs={"eps": 1e-5})})
    folder = result_folder(tmp_path, of)
    bare = {name: tensor for name, tensor in weights().items() if ".norm." not in name}
    torch.save(checkpoint(bare), folder / "fold_0" / "checkpoint_final.pth")
    import_model(tmp_path, tmp_path / "run")
    tensors, _ = load_tensors(tmp_path / "run" / WEIGHTS)
    assert tensors.keys() == bare.keys()


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"])
def test_logits_are_those_of_the_package(name: str, tmp_path: Path) -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    arguments = dict(architecture(name)["arch_kwargs"])
    arguments |= {
        "conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU,
        "deep_supervision": False,
    }  # fmt: skip
    torch.manual_seed(2)
    theirs = getattr(unet, name)(input_channels=1, num_classes=3, **arguments).eval()
    folder = result_folder(tmp_path, plans({"architecture": architecture(name)}))
    state = {"network_weights": theirs.state_dict()}
    torch.save(checkpoint({}) | state, folder / "fold_0" / "checkpoint_final.pth")
    import_model(folder, tmp_path / "run")
    ours, _ = load_model(tmp_path / "run")
    x = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
