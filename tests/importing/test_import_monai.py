"""MONAI bundles, written by hand as the model zoo has them, become run folders, or are refused by name.

A stand-in takes the place of `monai.networks.nets`; `segmentation/test_as_monai.py` compares with MONAI itself.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from monai_bundles import ORIENTATION, SCALED, SIGMOID, SPACING, THRESHOLD, bundle, config, metadata, with_random_norms
from volseg.api import import_model
from volseg.cli.app import run as volseg
from volseg.errors import CheckpointError, ConfigError
from volseg.models.origin import Origin
from volseg.models.stored import load_model, read_card
from volseg.volumes.intensity import Normalization
from volseg.volumes.regions import Region

NETWORK = {"_target_": "monai.networks.nets.UNet", "in_channels": "@channels", "out_channels": 3, "width": 4}
ZSCORE = {"_target_": "NormalizeIntensityd", "keys": "@key", "nonzero": "True", "channel_wise": "True"}
SCALE = {"_target_": "ScaleIntensityd", "keys": "@key", "minv": -1, "maxv": 1}


class UNet(nn.Sequential):
    """Two convolutions of sides that differ, so that a wrong order of the axes shows."""

    def __init__(self, in_channels: int, out_channels: int, width: int) -> None:
        first = nn.Conv3d(in_channels, width, (3, 1, 5), padding=(1, 0, 2))
        super().__init__(first, nn.InstanceNorm3d(width, affine=True), nn.ReLU(), nn.Conv3d(width, out_channels, 1))


@pytest.fixture(autouse=True)
def monai(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in."""
    nets = ModuleType("monai.networks.nets")
    nets.UNet = UNet  # type: ignore[attr-defined]
    for name in ("monai", "monai.networks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "monai.networks.nets", nets)


def made(folder: Path, values: dict[str, Any] | None = None, described: dict[str, Any] | None = None, **options: Any):
    """A bundle and the module whose weights it has."""
    values = values or config(network_def=NETWORK)
    module = with_random_norms(UNet(values["channels"], 3, 4))
    return bundle(folder, module, values, described, **options), module


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_network_weights_and_reading_are_the_bundles(ending: str, tmp_path: Path) -> None:
    folder, module = made(tmp_path / "bundle", ending=ending)
    import_model(folder, tmp_path / "run")
    model, card = load_model(tmp_path / "run")
    assert card.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert card.seen_at == (2.0, 1.1, 1.3)  # the patient's z, y, x
    (scheme,) = card.schemes
    assert (scheme.name, scheme.fixed) == ("CT", Normalization(-200, 300, -200, 500))
    assert card.origin == Origin(
        tool="monai", source="Tiny, UNet", window=(16, 24, 16), step=0.5, first=True, late=True, back="probabilities",
        weighting="constant",
    )  # fmt: skip
    x = torch.rand(1, 1, 8, 9, 10)
    with torch.no_grad():
        torch.testing.assert_close(model(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2), module(x))


def test_regions_that_lie_in_each_other_come_in_that_order(tmp_path: Path) -> None:
    names = ("Tumor core", "Whole tumor", "Enhancing tumor")
    values = config([ZSCORE], [SIGMOID, THRESHOLD, {"_target_": "Lambdad", "func": "$lambda x: x"}], channels=2)
    folder, module = made(tmp_path / "b", values | {"network_def": NETWORK}, metadata("MR", ("T1", "T2"), names))
    imported = import_model(folder, tmp_path / "run")
    model, card = load_model(tmp_path / "run")
    assert card.regions == (
        Region("Whole tumor", (1, 2, 3), 1), Region("Tumor core", (2, 3), 2), Region("Enhancing tumor", (3,), 3)
    )  # fmt: skip
    assert [scheme.method for scheme in card.schemes] == ["zscore_nonzero"] * 2
    assert card.seen_at is None
    x = torch.rand(1, 2, 6, 7, 8)
    with torch.no_grad():
        expected = module(x)[:, [1, 0, 2]]
        torch.testing.assert_close(model(x.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2), expected)
    assert any("Lambdad" in note for note in imported.notes)


@pytest.mark.parametrize(
    ("transforms", "method", "span", "fixed"),
    [
        ([], "zscore", (0, 1), Normalization(-math.inf, math.inf, 0, 1)),
        ([SCALE], "rescale", (-1, 1), None),
        ([ZSCORE, SCALE], "rescale_nonzero", (-1, 1), None),
        ([SCALE, ZSCORE | {"nonzero": False}], "zscore", (0, 1), None),
        ([SCALED | {"clip": False, "b_min": None}], "zscore", (0, 1), Normalization(-math.inf, math.inf, -200, 500)),
        ([ZSCORE | {"nonzero": False, "subtrahend": 5.0, "divisor": 2}], "zscore", (0, 1),
         Normalization(-math.inf, math.inf, 5, 2)),
    ],
)  # fmt: skip
def test_each_way_to_normalise(transforms: list, method: str, span: tuple, fixed: Any, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "bundle", config(transforms, network_def=NETWORK))
    import_model(folder, tmp_path / "run")
    (scheme,) = read_card(tmp_path / "run" / "weights.safetensors").schemes
    assert (scheme.method, scheme.span, scheme.fixed) == (method, span, fixed)


WINDOWS = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def": NETWORK | {"width": "$2 + 2"}}, r"network_def#width = '\$2 \+ 2' is Python"),
        ({"network_def": NETWORK | {"width": "@nowhere"}}, "network_def#width refers to nowhere, which is not there"),
        ({"a": "@b", "b": "@a", "network_def": NETWORK | {"width": "@a"}}, "refers to itself"),
        ({"network_def": NETWORK | {"_target_": "scripts.net.UNet"}}, "network_def is a scripts.net.UNet; known are"),
        ({"network_def": NETWORK | {"_target_": "os.system"}}, "network_def is a os.system; known are"),
        ({"network_def": NETWORK | {"depth": 3}}, "making a UNet failed: TypeError"),
        ({"inferer": {"_target_": "SliceInferer"}}, "its inferer is SliceInferer"),
        ({"inferer": WINDOWS | {"padding_mode": "reflect"}}, "padding_mode reflect"),
        ({"transforms": [{"_target_": "GaussianSmoothd", "keys": "image"}]}, "GaussianSmoothd, which changes voxels"),
        ({"transforms": [ORIENTATION | {"axcodes": "LPS"}]}, "axcodes = 'LPS'; only RAS is known"),
        ({"transforms": [SPACING, ORIENTATION]}, "comes after Spacingd"),
        ({"transforms": [SPACING | {"mode": 3}]}, "mode bilinear and nothing else"),
        ({"transforms": [SPACING | {"pixdim": "$[1, 1, 1] if 1 else 2"}]}, "is Python"),
        ({"transforms": [SCALED, ZSCORE]}, "comes after another normalisation"),
    ],
)
def test_what_cannot_be_imported_is_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    transforms = changes.pop("transforms", [ORIENTATION])
    folder, _ = made(tmp_path / "bundle", config(transforms, **{"network_def": NETWORK} | changes))
    with pytest.raises(ConfigError, match=message):
        import_model(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Running:
    """What its pickle would run."""

    def __reduce__(self) -> Any:
        return exec, ("open('ran', 'w')",)


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, module = made(tmp_path / "bundle")
    torch.save({"model": module.state_dict(), "more": Running()}, folder / "models" / "model.pt")
    with pytest.raises(CheckpointError, match="refused, nothing of it was run"):
        import_model(folder, tmp_path / "run")
    assert not (tmp_path / "ran").exists()
    torch.save({"model": module.state_dict()}, folder / "models" / "model.pt")
    import_model(folder, tmp_path / "run")


def test_weights_that_are_missing_or_others(tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "bundle")
    weights = folder / "models" / "model.pt"
    torch.save(UNet(1, 3, 5).state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"not those of the UNet of network_def: .* 0\.weight"):
        import_model(folder, tmp_path / "run")
    weights.rename(weights.with_suffix(".ts"))
    with pytest.raises(CheckpointError, match=r"model.ts is a program, which is not run; .*state_dict"):
        import_model(folder, tmp_path / "run")


def test_without_monai_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made(tmp_path / "bundle")
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ConfigError, match=r"network_def: UNet is a class of MONAI.*pip install monai"):
        import_model(folder, tmp_path / "run")


def test_the_command_prints_a_table_or_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = made(tmp_path / "bundle")
    assert volseg(["import", str(folder), "-o", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "Tiny, UNet" in out
    assert json.loads((tmp_path / "run" / "report.json").read_text())["imported"]["network"] == "UNet"
    assert volseg(["import", str(folder), "-o", str(tmp_path / "run"), "-q", "--overwrite"]) == 0
    assert capsys.readouterr().out == ""
