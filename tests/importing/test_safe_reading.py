"""Checkpoints and zips that were made to do harm are refused, and nothing of them runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from harm import Runs
from nnunet_folders import checkpoint, result_folder, zipped
from volseg.api import import_model
from volseg.errors import CheckpointError, ConfigError
from volseg.importing.checkpoints import read_checkpoint


class Evaluates(Runs):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.mark)!r}, 'w')",)


class ObjectType(Runs):
    def __reduce__(self) -> tuple:
        return np.dtype, ("O",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("harm", "name"), [(Runs, "posix.system"), (Evaluates, "eval"), (ObjectType, "'O'")])
def test_a_pickle_that_runs_something_is_refused_by_name(harm, name: str, legacy: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"network_weights": harm(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=rf"evil: refused, nothing of it was run: .*{name}"):
        read_checkpoint(path, "evil")
    assert not mark.exists()
    torch.load(path, weights_only=False)  # to who trusts it, the same file does what it says
    assert mark.exists() == (harm is not ObjectType)


@pytest.mark.parametrize("where", ["folder", "zip"])
@pytest.mark.parametrize("part", ["network_weights", "logging", "init_args", "optimizer_state"])
def test_an_nnunet_checkpoint_with_a_command_in_any_part_is_refused(part: str, where: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = result_folder(tmp_path / "results")
    values = checkpoint({"a": torch.ones(1)})
    values[part] = {"weight": Runs(mark)}
    torch.save(values, folder / "fold_0" / "checkpoint_final.pth")
    source = folder if where == "folder" else zipped(folder.parent, tmp_path / "exported.zip")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        import_model(source, tmp_path / "run")
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    kinds = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint64, np.bool_]
    values = {kind.__name__: kind(1) for kind in kinds}
    torch.save(values, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth", "a")
    assert read == values
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in values.items()}


def test_numbers_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pickle.dump({"a": np.float64(0.5)}, buffer, protocol=2)
    text = buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    torch.save({}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as before, zipfile.ZipFile(tmp_path / "b.pth", "w") as after:
        for info in before.infolist():
            after.writestr(info, text if info.filename.endswith("data.pkl") else before.read(info))
    assert read_checkpoint(tmp_path / "b.pth", "b") == {"a": 0.5}


@pytest.mark.parametrize("values", [b"", b"cut", pickle.dumps({"a": 1})])
def test_what_is_no_checkpoint_is_said(values: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(values)
    with pytest.raises(CheckpointError, match=r"^a: "):
        read_checkpoint(tmp_path / "a.pth", "a")


def test_a_torchscript_archive_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "a.pth"))
    with pytest.raises(CheckpointError, match="TorchScript archive, which holds a program"):
        read_checkpoint(tmp_path / "a.pth", "a")


@pytest.mark.parametrize("name", ["../outside/plans.json", "/tmp/plans.json", "a/../../plans.json", "C:/plans.json"])
def test_a_zip_with_a_path_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, "{}")
    with pytest.raises(CheckpointError, match="leads out of it"):
        import_model(tmp_path / "evil.zip", tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused(tmp_path: Path) -> None:
    folder = result_folder(tmp_path / "results")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(bytes(64 * 2**20))
    source = zipped(folder.parent, tmp_path / "exported.zip")
    with pytest.raises(CheckpointError, match="nothing was unpacked"):
        import_model(source, tmp_path / "run")


def test_a_damaged_zip_is_said(tmp_path: Path) -> None:
    source = zipped(result_folder(tmp_path / "results").parent, tmp_path / "exported.zip")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="neither a folder nor a zip"):
        import_model(source, tmp_path / "run")
    middle = len(whole) // 2
    source.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(CheckpointError, match=r"cannot be unpacked|cannot be read"):
        import_model(source, tmp_path / "run")


def test_json_that_is_none_is_said(tmp_path: Path) -> None:
    folder = result_folder(tmp_path)
    for text in ("{", "[1]", "[" * 100_000):
        (folder / "plans.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"plans\.json: (is not JSON|holds no table|is nested)"):
            import_model(folder, tmp_path / "run")
