"""Modules that a user names: made from their file or from MONAI, and errors that say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from volseg.errors import ConfigError
from volseg.models.user_module import module_named

SOURCE = """
from torch import nn
from beside import WIDTH

def plain(in_channels, out_channels, width=WIDTH, kernel=(1, 1, 1)):
    return nn.Sequential(nn.Conv3d(in_channels, width, tuple(kernel)), nn.Conv3d(width, out_channels, 1))

def other(in_channels, num_classes, spatial_dims):
    return nn.Conv3d(in_channels, num_classes, spatial_dims)

def number(): return 3
def fails(in_channels): raise RuntimeError("no such weights")
made = nn.Conv3d(1, 2, 1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("WIDTH = 4\n")
    path = tmp_path / "network.py"
    path.write_text(SOURCE)
    return path


def test_a_function_gets_the_channels_that_it_has_a_name_for(file: Path) -> None:
    first, last = module_named(f"{file}:plain", None, 2, 3)
    assert (first.in_channels, first.out_channels, last.out_channels) == (2, 4, 3)
    conv = module_named(f"{file}:other", None, 2, 5)
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (2, 5, (3, 3, 3))
    assert isinstance(module_named(f"{file}:made", None, 9, 9), nn.Conv3d)


def test_arguments_are_toml_on_the_line_or_in_a_file(file: Path) -> None:
    first, _ = module_named(f"{file}:plain", "width = 6, kernel = [1, 3, 3]", 1, 2)
    assert (first.out_channels, first.kernel_size) == (6, (1, 3, 3))
    (file.parent / "more.toml").write_text("width = 7\nin_channels = 3\n")
    first, _ = module_named(f"{file}:plain", str(file.parent / "more.toml"), 1, 2)
    assert (first.out_channels, first.in_channels) == (7, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("none.py:plain", None, "there is no file none.py"),
        ("{file}", None, "name a function or class in the file"),
        ("{file}:plan", None, "has no function or class plan; did you mean plain?"),
        ("{file}:number", None, "gives a int, no torch.nn.Module"),
        ("{file}:fails", None, r"making it with \(in_channels=1\) failed: RuntimeError: no such weights"),
        ("{file}:plain", "depth = 3", "got an unexpected keyword argument 'depth'; give what it needs"),
        ("{file}:plain", "width: 3", "is not TOML"),
        ("{file}:made", "width = 3", "is a module already"),
    ],
)
def test_what_is_wrong_is_said(file: Path, name: str, arguments: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        module_named(name.format(file=file), arguments, 1, 2)


def test_a_file_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError, match=r"running .*broken\.py failed: ModuleNotFoundError"):
        module_named(f"{tmp_path / 'broken.py'}:net", None, 1, 2)


def test_classes_of_monai_are_made_by_their_names() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    arguments = "channels = [4, 8, 16], strides = [2, 2], act = 'RELU'"
    assert isinstance(module_named("UNet", arguments, 1, 2), nets.UNet)
    with pytest.raises(ConfigError, match=r"has no function or class UNit; did you mean UNet\?"):
        module_named("UNit", None, 1, 2)


def test_without_monai_its_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "monai.networks.nets", None)
    with pytest.raises(ConfigError, match="a class of MONAI, which cannot be imported here"):
        module_named("UNet", None, 1, 2)
