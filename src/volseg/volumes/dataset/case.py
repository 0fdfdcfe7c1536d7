"""What a data set is: its cases, channels and labels, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volseg.config import NO_MAP, LabelsConfig, Readers
from volseg.volumes.image_file import ImageFile
from volseg.volumes.label_map import LabelMap, MappedLabels
from volseg.volumes.mask_source import open_mask
from volseg.volumes.mask_values import Remark, no_remark
from volseg.volumes.readers import MajorityLabels
from volseg.volumes.regions import Region
from volseg.volumes.volume import Volume

Kind = Literal[
    "missing image", "missing labels", "several labels", "numTraining", "duplicate", "unreadable", "geometry",
    "too many labels", "outside the list", "no whole numbers", "not finite", "constant image", "empty labels",
    "unused label", "ignored", "doubtful labels", "doubtful image", "intensities",
    "lost label",
]  # fmt: skip
"""What can be wrong with a data set."""


@dataclass(frozen=True)
class Case:
    """One scan: its image channels in order, and its label file (None where there is none).

    others     masks of further readers of the scan, besides `label`, the first one's
    annotated  names of the labels (or regions) that were looked for in it; None: all
    """

    name: str
    images: tuple[ImageFile, ...]
    label: Path | None
    annotated: tuple[str, ...] | None = None
    others: tuple[Path, ...] = ()

    @property
    def masks(self) -> tuple[Path, ...]:
        """One of each reader."""
        return () if self.label is None else (self.label, *self.others)


@dataclass(frozen=True)
class Dataset:
    """A data set's description; no voxel is read for it.

    folder          what was named: a folder, or one scan
    channel_names   by channel
    labels          name -> value; ``background`` is 0 and the values run 0..K without a gap
    notes           what was assumed where the files do not say it, for the user
    ignore          value of the voxels that nobody has labelled (nnU-Net's label ``ignore``), above K; None: there are
                    none. They count neither in training nor in any figure
    warnings        what lies there and is passed over
    regions         overlapping sets of labels, which a network learns in place of the labels; empty: it learns those
    label_map       how the labels are made from the values that the files hold; None: they are those
    readers         what is learned where a case has masks of several readers
    """

    folder: Path
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    ignore: int | None = None
    warnings: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    label_map: LabelMap | None = None
    readers: Readers = "majority"

    def unknown_in(self, case: Case) -> tuple[int, ...]:
        """The numbers of the outputs that nobody has looked for in a case."""
        if case.annotated is None:
            return ()
        first = len(self.outputs) - len(self.scored)
        return tuple(n for n, name in enumerate(self.outputs) if n >= first and name not in case.annotated)

    def open_labels(self, case: Case, remark: Remark = no_remark) -> Volume:
        """The labels of a case that has some, with the values of `labels` and `ignore`; of several readers what most of
        them say, or where the first alone counts, what that one says.

        Raises VolumeError as `open_mask` does, and where masks do not lie on one grid.
        """
        masks = case.masks[:1] if self.readers == "first" else case.masks
        several = [self._open(path, remark) for path in masks]
        return several[0] if len(several) == 1 else MajorityLabels(several, self.labels, self.ignore)

    def open_readers(self, case: Case) -> tuple[Volume, ...]:
        """Each reader's labels, where a step sees those of one drawn at random; else none. Raises as `open_labels`."""
        if self.readers != "random" or len(case.masks) < 2:
            return ()
        return tuple(self._open(path, no_remark) for path in case.masks)

    def _open(self, path: Path, remark: Remark) -> Volume:
        mask = open_mask(path, remark)
        return mask if self.label_map is None else MappedLabels(mask, self.label_map)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What a network has a logit for: the regions, or the labels by value, background first."""
        return tuple(region.name for region in self.regions) or self.label_names

    @property
    def scored(self) -> tuple[str, ...]:
        """What has a Dice: the regions, or the labels but the background."""
        return self.outputs if self.regions else self.label_names[1:]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names by label value, background first."""
        return tuple(sorted(self.labels, key=lambda name: self.labels[name]))


@dataclass(frozen=True)
class DataSource:
    """Where a data set is, and what its files may not say.

    path           a folder with dataset.json, a folder of what `volseg ingest` wrote, or one scan
    labels         of one scan: the file of its labels; of a folder of .zarr: the name of the label image in each
    label_names    JSON file with names and values, for sets without dataset.json
    channel_names  for sets without dataset.json; empty: "CT" for one channel
    label_map      which values of the files make which label; empty: they are taken as they are
    readers        as `Dataset.readers`
    """

    path: Path
    labels: str | None = None
    label_names: Path | None = None
    channel_names: tuple[str, ...] = ()
    label_map: LabelsConfig = NO_MAP
    readers: Readers = "majority"


@dataclass(frozen=True)
class Fault:
    """Something wrong with a data set.

    case     its name; empty where it is about the set as a whole
    serious  False: a case can be trained on all the same
    """

    case: str
    kind: Kind
    message: str
    serious: bool = True
