"""Archives of `torch.export`: the network and its weights, and nothing that was made to do harm is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harm import Runs
from volseg.errors import CheckpointError
from volseg.models.described import DescribedModule
from volseg.models.exported import describe_archive, state_from

WEIGHTS = "net/data/weights/model_weights_config.json"
CONSTANTS = "net/data/constants/model_constants_config.json"
MODEL = "net/models/model.json"


class Small(nn.Module):
    """A convolution, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.ReLU())
        self.head = nn.Conv3d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def volume() -> Tensor:
    return torch.randn((1, 2, 8, 8, 8), generator=torch.Generator().manual_seed(1))


def saved(path: Path) -> tuple[nn.Module, Path]:
    module = Small().eval()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (volume(),)), path)
    return module, path


def crafted(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The archive of a small network, written again as `change` leaves its members."""
    with zipfile.ZipFile(saved(path.with_name("net.pt2"))[1]) as source:
        members = {name: source.read(name) for name in source.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as target:
        for name, content in members.items():
            target.writestr(name, content)
    return path


def edit(members: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    values = json.loads(members[name])
    change(values)
    members[name] = json.dumps(values).encode()


def test_an_archive_gives_the_network_and_its_weights(tmp_path: Path) -> None:
    module, path = saved(tmp_path / "net.pt2")
    network, tensors = describe_archive(path)
    model = DescribedModule(network).eval()
    model.load_state_dict(state_from(network, tensors, "net.pt2"))
    with torch.no_grad():
        assert torch.equal(model(volume()), module(volume()))


def test_a_weight_that_runs_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = io.BytesIO()
    torch.save(Runs(mark), evil)

    def change(members: dict[str, bytes]) -> None:
        members["net/data/weights/weight_0"] = evil.getvalue()
        edit(members, WEIGHTS, lambda values: next(iter(values["config"].values())).update(use_pickle=True))

    path = crafted(tmp_path / "evil.pt2", change)
    with pytest.raises(CheckpointError, match="is pickled, and unpickling can run any program"):
        describe_archive(path)
    assert not mark.exists()


def test_an_object_that_runs_a_command_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def change(members: dict[str, bytes]) -> None:
        members["net/data/constants/custom_pickled_obj_0"] = pickle.dumps(Runs(mark))
        entry = {"path_name": "custom_pickled_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        edit(members, CONSTANTS, lambda values: values["config"].update(harm=entry))

    path = crafted(tmp_path / "evil.pt2", change)
    with pytest.raises(CheckpointError, match="its harm is pickled"):
        describe_archive(path)
    assert not mark.exists()


def test_what_torch_would_unpickle_or_evaluate_beside_the_graph_is_not_read(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    harm = {"as_expr": {"expr_str": f"open({str(mark)!r}, 'w')", "hint": {"as_int": 8}}}

    def change(members: dict[str, bytes]) -> None:
        members["net/data/sample_inputs/model.pt"] = pickle.dumps(Runs(mark))
        members["net/extra/loader.py"] = f"open({str(mark)!r}, 'w')".encode()

        def evaluated(values: Any) -> None:
            for meta in values["graph_module"]["graph"]["tensor_values"].values():
                meta["sizes"] = [harm if size == {"as_int": 8} else size for size in meta["sizes"]]

        edit(members, MODEL, evaluated)

    path = crafted(tmp_path / "evil.pt2", change)
    assert b"expr_str" in zipfile.ZipFile(path).read(MODEL)
    network, _ = describe_archive(path)
    assert network.classes == 3
    assert not mark.exists()


def test_an_operation_of_another_library_is_refused_by_name(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members[MODEL] = members[MODEL].replace(b"torch.ops.aten.relu.default", b"torch.ops.harm.run.default")

    with pytest.raises(Exception, match=r"torch\.ops\.harm\.run\.default\(\) is no operation that a description has"):
        describe_archive(crafted(tmp_path / "evil.pt2", change))


@pytest.mark.parametrize("name", ["net/../../outside", "../outside", "/tmp/outside", "C:/outside", "net\\..\\outside"])
def test_a_path_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    path = crafted(tmp_path / "evil.pt2", lambda members: members.update({name: b"outside"}))
    with pytest.raises(CheckpointError, match=r"leads out of it; nothing was read"):
        describe_archive(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.pt2", "net.pt2"]


def test_a_weight_from_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        edit(members, WEIGHTS, lambda v: next(iter(v["config"].values())).update(path_name="../../models/model.json"))

    with pytest.raises(CheckpointError, match="is no name of a member"):
        describe_archive(crafted(tmp_path / "evil.pt2", change))


def test_a_weight_that_says_to_be_far_larger_than_it_is_is_refused(tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        def enlarged(values: Any) -> None:
            meta = next(iter(values["config"].values()))["tensor_meta"]
            meta["sizes"], meta["strides"] = [{"as_int": 1 << 40}], [{"as_int": 0}]

        edit(members, WEIGHTS, enlarged)

    with pytest.raises(CheckpointError, match=r"is \[1099511627776\], but only 216 values are there"):
        describe_archive(crafted(tmp_path / "evil.pt2", change))


def test_a_member_that_unpacks_to_more_than_the_archive_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2")[1]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/weights/weight_9", bytes(1 << 22))
    with pytest.raises(CheckpointError, match="would unpack to 4194304 bytes"):
        describe_archive(path)


@pytest.mark.parametrize("text", [b"{", b"[1]", b"[" * 100_000])
def test_a_graph_that_is_no_graph_is_said(text: bytes, tmp_path: Path) -> None:
    path = crafted(tmp_path / "evil.pt2", lambda members: members.update({MODEL: text}))
    with pytest.raises(CheckpointError, match=r"not as this version reads archives|would unpack"):
        describe_archive(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b'{"graph": 1}'])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"no torch\.export archive"):
        describe_archive(path)
