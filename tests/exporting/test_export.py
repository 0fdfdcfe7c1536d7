"""Run folders as nnU-Net's predictor opens them, and as torch modules that need no volseg."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_folders import as_trained, dataset, plans, random_weights, result_folder
from tiny import untrained_run
from volseg.api import export, import_model
from volseg.config import ModelConfig
from volseg.errors import ConfigError
from volseg.models.stored import load_model
from volseg.networks.nnunet_plan import architecture_of, configuration_of

STRIDED = ModelConfig(base_channels=4, levels=2, down="stride", kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)))


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A run imported from a result of two folds."""
    result_folder(tmp_path / "results", folds=("0", "3"))
    import_model(tmp_path / "results", tmp_path / "run")
    return tmp_path / "run"


def test_what_was_imported_goes_out_as_it_came(imported: Path, tmp_path: Path) -> None:
    exported = export(imported, tmp_path / "out", to="nnunet")
    assert exported.files == (
        "dataset.json", "fold_0/checkpoint_final.pth", "fold_3/checkpoint_final.pth", "plans.json"
    )  # fmt: skip
    for fold in (0, 3):
        state = torch.load(tmp_path / "out" / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)
        of = architecture_of(configuration_of(plans(), "3d_fullres", "plans"), "plans")
        expected = as_trained(random_weights(of, 1, 3, fold))
        assert state["network_weights"].keys() == expected.keys()
        assert all(torch.equal(state["network_weights"][name], tensor) for name, tensor in expected.items())
        assert state["inference_allowed_mirroring_axes"] == (0, 1, 2)
    written = configuration_of(json.loads((tmp_path / "out" / "plans.json").read_text()), "3d_fullres", "plans")
    before = configuration_of(plans(), "3d_fullres", "plans")
    assert architecture_of(written, "plans") == architecture_of(before, "plans")
    for key in ("patch_size", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data_kwargs"):
        assert written[key] == before[key], key
    named = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (named["labels"], named["channel_names"]) == (dataset()["labels"], {"0": "CT"})


def test_regions_go_out_as_they_came(tmp_path: Path) -> None:
    named = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    result_folder(tmp_path / "results", of_dataset=dataset(named, regions_class_order=[1, 2, 3]))
    import_model(tmp_path / "results", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", to="nnunet")
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (written["labels"], written["regions_class_order"]) == (named, [1, 2, 3])


@pytest.mark.parametrize(
    "settings",
    [
        STRIDED,
        ModelConfig(base_channels=4, levels=2, down="stride", activation="relu", convolutions=1, norm="batch"),
        ModelConfig(base_channels=4, levels=1, down="stride", norm="none", strides=((1, 2, 2),)),
    ],
)
def test_our_strided_unet_has_the_same_logits_when_it_comes_back(settings: ModelConfig, tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", settings=settings)
    exported = export(run, tmp_path / "out", to="nnunet", window="16x16x24")
    assert any("give it scans whose stored axes are canonical" in note for note in exported.notes)
    import_model(tmp_path / "out", tmp_path / "again")
    (ours, _), (again, card) = load_model(run), load_model(tmp_path / "again")
    assert card.origin is not None
    assert card.origin.window == (16, 16, 24)
    x = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert torch.allclose(ours(x), again(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelConfig(base_channels=4, levels=2), r"down = 'pool': .* down = 'stride'"),
        (ModelConfig(base_channels=4, levels=2, down="stride", up="nearest"), r"up = 'nearest': .* up = 'transpose'"),
        (ModelConfig(base_channels=4, levels=2, down="stride", encoder="residual"), r"encoder = 'residual'"),
        (ModelConfig(base_channels=4, levels=2, architecture="segresnet"), r"architecture = 'segresnet'"),
        (ModelConfig(base_channels=8, levels=2, down="stride", norm="group"), r"norm = 'group'"),
    ],
)
def test_networks_that_nnunet_has_not_are_refused_with_what_would_do(
    settings: ModelConfig, message: str, tmp_path: Path
) -> None:
    run = untrained_run(tmp_path / "run", settings=settings)
    with pytest.raises(ConfigError, match=message):
        export(run, tmp_path / "out", to="nnunet")
    assert not (tmp_path / "out").exists()
    export(run, tmp_path / "out", to="torch")


def test_a_torch_module_opens_without_volseg_at_any_size(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", settings=STRIDED)
    export(run, tmp_path / "out", to="torch")
    model, card = load_model(run)
    x = torch.randn(1, 1, 12, 20, 8)
    with torch.no_grad():
        torch.save({"x": x, "y": model(x)}, tmp_path / "expected.pt")
    script = (
        "import sys, torch\n"
        "sys.modules['volseg'] = None\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "stored = torch.load(sys.argv[2])\n"
        "assert torch.allclose(module(stored['x']), stored['y'], atol=1e-5, rtol=1e-5)\n"
        "assert module(torch.zeros(1, 1, 16, 32, 8)).shape == (1, 3, 16, 32, 8)\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "out" / "network.pt2"), str(tmp_path / "expected.pt")]
    subprocess.run(arguments, check=True, timeout=120, cwd=tmp_path)
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert described["labels"] == card.labels
    assert described["multiple"] == [4, 4, 4]


def test_an_archive_comes_back_with_what_describes_it(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", settings=STRIDED)
    export(run, tmp_path / "out", to="torch")
    imported = import_model(tmp_path / "out" / "network.pt2", tmp_path / "again")
    (ours, before), (again, card) = load_model(run), load_model(tmp_path / "again")
    assert (card.labels, card.schemes, card.spacing) == (before.labels, before.schemes, before.spacing)
    assert imported.notes == ()
    x = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert torch.allclose(ours(x), again(x), atol=1e-5, rtol=1e-5)
    (tmp_path / "out" / "model.json").unlink()
    (note,) = import_model(tmp_path / "out" / "network.pt2", tmp_path / "bare").notes
    assert "no model.json beside the archive" in note
    bare = load_model(tmp_path / "bare")[1]
    assert (bare.labels, bare.seen_at) == ({"background": 0, "class_1": 1, "class_2": 2}, None)
    (tmp_path / "out" / "model.json").write_text(json.dumps({"channels": [], "labels": {}, "spacing_mm": [1, 1, 1]}))
    with pytest.raises(ConfigError, match=r"describes 0 channels and 0 classes, but the network of network.pt2 has 1"):
        import_model(tmp_path / "out" / "network.pt2", tmp_path / "none")


def test_each_fold_is_an_archive_of_its_own(imported: Path, tmp_path: Path) -> None:
    exported = export(imported, tmp_path / "out", to="torch")
    assert exported.files == ("model.json", "network.pt2", "network_fold_3.pt2")


def test_an_export_is_replaced_when_asked_and_nothing_else_ever_is(tmp_path: Path) -> None:
    run, out = untrained_run(tmp_path / "run", settings=STRIDED), tmp_path / "out"
    export(run, out, to="nnunet")
    with pytest.raises(ConfigError, match="replace it with --overwrite"):
        export(run, out, to="nnunet")
    export(run, out, to="torch", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "network.pt2"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes.txt and is no export"):
        export(run, out, to="torch", overwrite=True)
    with pytest.raises(ConfigError, match=r"--window 10x16x16: the network takes multiples of 4x4x4"):
        export(run, tmp_path / "other", to="nnunet", window="10x16x16")


def test_the_predictor_of_nnunet_opens_it_and_has_the_same_logits(tmp_path: Path) -> None:
    predictor = pytest.importorskip("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor
    run = untrained_run(tmp_path / "run", settings=STRIDED)
    export(run, tmp_path / "out", to="nnunet", window="16x16x16")
    theirs = predictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(tmp_path / "out"), use_folds=None)
    ours, _ = load_model(run)
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.network.eval()(x), atol=1e-5, rtol=1e-5)
        whole = theirs.predict_logits_from_preprocessed_data(x[0])
    assert whole.shape == (3, 16, 16, 16)
