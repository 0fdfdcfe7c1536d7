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
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.communicator import Communicator
from volseg.files import replacing, write_text
from volseg.geometry import Box
from volseg.models.stored import ModelCard
from volseg.nn.kernels.rows import Affine
from volseg.volumes.mask_names import beside
from volseg.volumes.scan import Scan

_SCHEMA = 1


class SegmentationState:
    """The state of one job. To make one is collective.

    found  whether one was there that belongs to this job; `refused` whether one was there that does not
    """

    def __init__(self, mask: Path, scan: Scan, card: ModelCard, weights: str, communicator: Communicator) -> None:
        self.folder = beside(mask, "_state")
        self._communicator = communicator
        self._belongs = {
            "schema": _SCHEMA,
            "scan": [_identity(file) for volume in scan.images for file in volume.audit.inputs or (volume.path,)],
            "shape": list(scan.layout.shape),
            "spacing_mm": [float(side) for side in scan.space.spacing],
            "fixes": [fix for volume in scan.channels for fix in volume.audit.fixes],
            "weights": weights,
            "schemes": [scheme.as_json() for scheme in card.schemes],
        }
        content: dict[str, Any] | None = None
        with communicator.together():
            if communicator.is_root:
                content = self._read()
        content = communicator.broadcast(content)
        self.refused = content is not None and content["belongs"] != json.loads(json.dumps(self._belongs))
        self._content = content if content is not None and not self.refused else None
        self.found = self._content is not None

    @property
    def described(self) -> str:
        """What is there, and so what is computed again, in words."""
        known = [label for label in self.affines() if label != "coarse"]
        return f"the coarse levels, and the norms of {', '.join(known)}, are known; the finest level is computed again"

    def affines(self) -> dict[str, Affine]:
        """Coefficients by layer, as far as they were found."""
        known = {} if self._content is None else self._content["affines"]
        return {label: _affine(values) for label, values in known.items()}

    def fill_coarse(self, box: Box, out: Tensor) -> bool:
        """Put a block at level 1 together in `out` [d, h, w, C]; whether there was anything to."""
        blocks = [] if self._content is None else self._content["blocks"]
        for start, stop in blocks:
            held = Box(tuple(start), tuple(stop))
            part = box.intersect(held)
            if part.size:
                values = np.load(self.folder / _name(held), mmap_mode="r")
                there = values[part.relative_to(held).slices]
                out.numpy()[part.relative_to(box).slices] = there
        return bool(blocks)

    def keep(self, affines: dict[str, Affine], coarse: tuple[Box, Tensor] | None = None) -> None:
        """Write what was found: coefficients, and once this rank's block of the coarse levels' output. Collective.

        Raises OSError, on all ranks, where the disk is full.
        """
        boxes = [] if self._content is None else self._content["blocks"]
        if coarse is not None:
            box, values = coarse
            with self._communicator.together():
                self.folder.mkdir(exist_ok=True)
                with replacing(self.folder / _name(box)) as temporary:
                    np.save(temporary, values.numpy())
            boxes = [[list(b.start), list(b.stop)] for b in self._communicator.gather_all(box)]
        self._content = {
            "belongs": self._belongs,
            "affines": {label: _plain(affine) for label, affine in affines.items()},
            "blocks": boxes,
        }
        with self._communicator.together():
            if self._communicator.is_root:
                self.folder.mkdir(exist_ok=True)
                write_text(self.folder / "state.json", json.dumps(self._content) + "\n")

    def remove(self) -> None:
        """The job is done. On the root."""
        if self._communicator.is_root:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            content = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if isinstance(content["belongs"], dict) and isinstance(content["affines"], dict):
                for start, stop in content["blocks"]:
                    np.load(self.folder / _name(Box(tuple(start), tuple(stop))), mmap_mode="r")
                return dict(content)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


def _name(box: Box) -> str:
    return "decoder-" + "-".join(str(n) for n in box.start) + ".npy"


def _identity(file: Path) -> list[Any]:
    """What a file is, without reading it all."""
    there = file.stat()
    return [file.name, there.st_size, there.st_mtime_ns]


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(affine: Affine) -> list[Any]:
    return [affine.scale.tolist(), affine.shift.tolist(), affine.slope]


def _affine(values: list[Any]) -> Affine:
    scale, shift, slope = values
    return Affine(torch.tensor(scale, dtype=torch.float32), torch.tensor(shift, dtype=torch.float32), float(slope))
