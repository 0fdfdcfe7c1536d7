"""What an interrupted `segment --continue` leaves beside the mask, and how the next one goes on from it.

After the coarse levels, which are half of the arithmetic, the raw output of the last of them is written, each rank's
block in a file of its own, and with it the coefficients of the norms found so far. The next run computes the finest
level again, but in `recompute` none of the passes whose coefficients are known. It may be one of another number of
ranks or another schedule: the bits are the same.

    MASK_state/state.json           what it belongs to, coefficients, boxes
    MASK_state/decoder-Z-Y-X.npy    [d, h, w, C] float32, a block at level 1 that begins at Z, Y, X
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.communicator import Communicator
from volseg.files import replacing, write_text
from volseg.geometry import Box
from volseg.models.stored import ModelCard
from volseg.networks.description import ActivationKind
from volseg.nn.kernels.rows import Affine
from volseg.precision import FLOAT32, Precision
from volseg.program.resume import COARSE
from volseg.volumes.mask_names import beside
from volseg.volumes.scan import Scan

_SCHEMA = 1


class SegmentationState:
    """The state of one job, a `models.journal.Journal`. To make one is collective.

    found    whether one was there that belongs to this job
    refused  why one that was there is not used; empty where there was none
    """

    def __init__(
        self, mask: Path, scan: Scan, card: ModelCard, weights: str, communicator: Communicator,
        precision: Precision = FLOAT32,
    ) -> None:  # fmt: skip
        self.folder = beside(mask, "_state")
        self._communicator = communicator
        self._whole = Box.whole(scan.layout.coarser(card.described.factors[1]).shape)
        self._content, self.refused = communicator.on_root(
            lambda: self._begin(_belongs(scan, card, weights, precision))
        )
        self.found = bool(self._content["blocks"])

    @property
    def described(self) -> str:
        """What is there, and so what is computed again, in words."""
        known = [label for label in self.affines() if label != COARSE]
        return f"the coarse levels, and the norms of {', '.join(known)}, are known; the finest level is computed again"

    def affines(self) -> dict[str, Affine]:
        """As `Journal.affines`."""
        return {label: _affine(values) for label, values in self._content["affines"].items()}

    def fill_coarse(self, box: Box, out: Tensor) -> None:
        """As `Journal.fill_coarse`."""
        for start, stop in self._content["blocks"]:
            held = Box(tuple(start), tuple(stop))
            part = box.intersect(held)
            if part.size:
                values = np.load(self.folder / _name(held), mmap_mode="r")  # unmapped again at once
                out.numpy()[part.relative_to(box).slices] = values[part.relative_to(held).slices]

    def keep_coarse(self, box: Box, slabs: Iterator[Tensor]) -> None:
        """As `Journal.keep_coarse`. Raises OSError, on all ranks, where the disk is full."""
        with self._communicator.together():
            self.folder.mkdir(exist_ok=True)
            with replacing(self.folder / _name(box)) as temporary, open(temporary, "wb") as file:
                for number, plane in enumerate(slabs):
                    values = np.ascontiguousarray(plane.numpy(), np.float32)
                    if number == 0:
                        shape = (*box.shape, values.shape[2])
                        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(values.data.cast("B"))
        boxes = self._communicator.gather_all(box)
        self._content["blocks"] = [[list(b.start), list(b.stop)] for b in boxes]

    def keep(self, affines: dict[str, Affine]) -> None:
        """As `Journal.keep`."""
        self._content["affines"] = {label: _plain(affine) for label, affine in affines.items()}
        self._communicator.on_root(self._write)

    def remove(self) -> None:
        """The job is done. On the root."""
        if not self._communicator.is_root:
            return
        for file in (self.folder / "state.json", *self.folder.glob("decoder-*.npy")):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # holds what is not ours
            self.folder.rmdir()

    def _begin(self, belongs: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """What is there, and why it is not used; where it is not, it is removed, and an empty content returned."""
        content, refused = self._read(belongs)
        if content is None:
            # Before any block of it is overwritten: blocks of two runs must never be taken for one's.
            (self.folder / "state.json").unlink(missing_ok=True)
            content = {"belongs": belongs, "affines": {}, "blocks": []}
        return content, refused

    def _write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        write_text(self.folder / "state.json", json.dumps(self._content) + "\n")

    def _read(self, belongs: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """What is there, if it is whole and this job's; else nothing and why."""
        file = self.folder / "state.json"
        if not file.exists():
            return None, ""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["belongs"] != belongs:
                return None, "belongs to another scan, model, spacing or precision"
            for values in content["affines"].values():
                _affine(values)
            boxes = [Box(tuple(start), tuple(stop)) for start, stop in content["blocks"]]
            for box in boxes:
                held = np.load(self.folder / _name(box), mmap_mode="r")
                if held.shape[:3] != box.shape or held.dtype != np.float32:
                    return None, f"{_name(box)} is damaged"
            if sum(box.size for box in boxes) != self._whole.size or not all(map(self._whole.contains, boxes)):
                return None, "is damaged"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, "is damaged"
        return dict(content), ""


def _belongs(scan: Scan, card: ModelCard, weights: str, precision: Precision) -> dict[str, Any]:
    """What a state must be of to be used, as plain values."""
    sources = [file for volume in scan.images for file in volume.audit.inputs or (volume.path,)]
    found = {
        "schema": _SCHEMA,
        "scan": [_identity(file) for file in sources],
        "shape": list(scan.layout.shape),
        "spacing_mm": [float(side) for side in scan.space.spacing],
        "fixes": [fix for volume in scan.channels for fix in volume.audit.fixes],
        "model": asdict(card.config.model),
        "weights": weights,
        "precision": precision,
        "schemes": [scheme.as_json() for scheme in card.schemes],
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _name(box: Box) -> str:
    return "decoder-" + "-".join(str(n) for n in box.start) + ".npy"


def _identity(source: Path) -> list[Any]:
    """What a file or folder is, without reading it: names, sizes and times; of a store without its labels."""
    files = [source] if source.is_file() else sorted(f for f in source.rglob("*") if f.is_file())
    files = [file for file in files if "labels" not in file.relative_to(source).parts]
    there = [file.stat() for file in files]
    return [source.name, len(files), sum(s.st_size for s in there), max((s.st_mtime_ns for s in there), default=0)]


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(affine: Affine) -> list[Any]:
    return [affine.scale.tolist(), affine.shift.tolist(), affine.slope, affine.kind]


def _affine(values: list[Any]) -> Affine:
    scale, shift, slope, *kind = values
    if kind and kind[0] not in get_args(ActivationKind):
        raise ValueError(f"no activation: {kind[0]!r}")
    coefficients = [torch.tensor(numbers, dtype=torch.float32) for numbers in (scale, shift)]
    return Affine(coefficients[0], coefficients[1], float(slope), *kind)
