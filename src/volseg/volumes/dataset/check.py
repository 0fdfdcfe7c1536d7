"""Verify a data set: all that is wrong with it, in one report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.events import Caution, Listener, Message, ignore
from volseg.volumes.dataset.at_spacing import lost_labels
from volseg.volumes.dataset.case import Dataset, DataSource, Fault
from volseg.volumes.dataset.examination import examine
from volseg.volumes.dataset.reading import survey_dataset
from volseg.volumes.file_names import DESCRIPTION
from volseg.volumes.fingerprint import Fingerprint


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds, and what is wrong with it.

    faults       in the order of the cases, those of the whole set last
    fingerprint  of the cases that can be trained on
    """

    dataset: Dataset
    faults: tuple[Fault, ...]
    fingerprint: Fingerprint

    @property
    def is_sound(self) -> bool:
        """Whether there are no faults but those that are no hindrance."""
        return not any(fault.serious for fault in self.faults)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "dataset": str(self.dataset.folder),
            "sound": self.is_sound,
            "faults": [dataclasses.asdict(fault) for fault in self.faults],
            "fingerprint": self.fingerprint.as_json(),
        }


def check_dataset(
    source: DataSource, communicator: Communicator, listen: Listener = ignore, *, allow_empty: bool = False
) -> CheckReport:
    """Look at every file of every case, and go on after a fault. Collective; every rank has the whole report.

    allow_empty  labels of background alone are no fault of a case, unless all cases are so

    Raises VolumeError where there is no data set at all: no folder, or a dataset.json that cannot be understood.
    """
    dataset, of_files = communicator.on_root(lambda: survey_dataset(source))
    for note in dataset.notes:
        listen(Message(note))
    found = examine(dataset, communicator, listen)
    spacings = [case.spacing for case in found.fingerprint.cases]
    lost: list[Fault] = []
    if spacings:  # what `train` sees them at unless it is told otherwise
        d, h, w = np.median(spacings, axis=0).tolist()
        lost = lost_labels(dataset, found.fingerprint, (d, h, w), communicator, listen)
    of_voxels = [
        dataclasses.replace(fault, serious=True)
        if fault.kind == "constant image" or (fault.kind == "empty labels" and not allow_empty)
        else fault
        for fault in found.faults
    ]
    faults = [*of_files, *of_voxels, *lost]
    if len(faults) > 1 and not dataset.cases and all(fault.kind == "missing image" for fault in faults):
        listen(Caution(
            f"{dataset.folder}: every case lacks a file of the {len(dataset.channel_names)} channels "
            f"{', '.join(dataset.channel_names)}; channel_names in {DESCRIPTION} may name more than there are"
        ))  # fmt: skip
    faults.sort(key=lambda fault: (not fault.case, fault.case))
    return CheckReport(dataset, tuple(faults), found.fingerprint)
