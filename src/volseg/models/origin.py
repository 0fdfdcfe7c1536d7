"""How the tool that trained an imported model reads a scan, and how it runs the network over it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from volseg.geometry import Triple
from volseg.volumes.imported_scan import Manner

Tool = Literal["nnunet", "monai", "torch"]
Order = Literal["stored", "canonical"]
Back = Literal["logits", "probabilities", "labels"]
Weighting = Literal["nnunet", "gaussian", "constant"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an imported model comes from.

    tool       the one that trained it
    source     what was imported, in words, such as "Dataset004_Hippocampus, 3d_fullres"
    window     voxels of the patches that it was trained on, on the network's axes; None: whole volumes
    step       how far windows lie apart, as a share of the window
    mirrored   the network's axes that training mirrored, which test-time mirroring may mirror
    order      the voxel order in which the network sees a scan: as the file has it, or canonical
    transpose  the network's axis n runs along axis ``transpose[n]`` of that order
    crop       whether a scan is cropped to the box that holds its voxels other than zero
    above      a scan, as resampled, is cropped to the box that holds what lies above this in a channel (MONAI); None:
               it is not
    cubic      whether images are resampled by cubic splines (nnU-Net); else linearly
    first      whether, in resampling linearly, the centre of the first voxel stays where it is (MONAI); else the
               volume's
    late       whether a scan is normalised after it is resampled (MONAI); else before
    back       what comes back onto the scan's grid: logits or probabilities, interpolated, or the nearest voxel's label
    weighting  of a window's voxels: nnU-Net's, MONAI's Gaussian, or all alike. Windows lie as the tool places them
    edge       whether a scan that is thinner than a window is carried on by its outermost voxels; else by zeros
    folds      numbers of the folds whose weights lie in the run folder, in their order; empty: there is one set.
               `models.stored.fold_path` says which file is whose

    The spacing on the card of a model whose order is "stored" is that of the network's axes, after `transpose`; that of
    any other is of the canonical D, H, W.
    """

    tool: Tool
    source: str
    window: Triple | None = None
    step: float = 0.5
    mirrored: tuple[int, ...] = ()
    order: Order = "canonical"
    transpose: Triple = (0, 1, 2)
    crop: bool = False
    above: float | None = None
    cubic: bool = False
    first: bool = False
    late: bool = False
    back: Back = "logits"
    weighting: Weighting = "nnunet"
    edge: bool = False
    folds: tuple[int, ...] = ()

    @property
    def is_our_reading(self) -> bool:
        """Whether the network sees scans as those that volseg trains: in canonical order, whole, resampled linearly."""
        other = self.crop or self.cubic or self.first or self.above is not None
        return self.order == "canonical" and self.transpose == (0, 1, 2) and not other

    @property
    def manner(self) -> Manner | None:
        """How the tool reads a scan; None where that is our reading."""
        if self.is_our_reading:
            return None
        return Manner(
            stored=self.order == "stored", transpose=self.transpose, crop=self.crop, cubic=self.cubic,
            first=self.first, late=self.late, nearest=self.back == "labels", above=self.above,
        )  # fmt: skip

    @property
    def as_trained_on(self) -> Origin:
        """The origin of the network after volseg has trained it on whole volumes.

        Of nnU-Net's models the scans are read as nnU-Net reads them, of others as volseg does.
        """
        if self.tool == "nnunet":
            return replace(self, window=None, folds=())
        return Origin(tool=self.tool, source=self.source, mirrored=self.mirrored, step=self.step)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Origin | None:
        """The inverse of `as_json`; None of None. Raises KeyError, TypeError or ValueError where it is malformed."""
        if value is None:
            return None
        if strange := set(value) - {field.name for field in fields(cls)}:
            raise ValueError(f"its origin has {', '.join(sorted(strange))}, which this version does not know")
        words = {"tool": Tool, "order": Order, "back": Back, "weighting": Weighting}
        if any(value.get(key, cls.__dict__.get(key)) not in get_args(kind) for key, kind in words.items()):
            raise ValueError(f"its origin is {value!r}")
        lists = {key: tuple(int(n) for n in part) for key, part in value.items() if isinstance(part, list | tuple)}
        return cls(**{**value, **lists})
