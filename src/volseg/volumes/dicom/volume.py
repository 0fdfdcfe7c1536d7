"""A CT series as a volume: headers when it is opened, pixels only of the slices that a box meets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.audit import Audit
from volseg.volumes.dicom.account import account
from volseg.volumes.dicom.copies import without_copies
from volseg.volumes.dicom.corrections import Plan, interpolated_slices, plan_corrections, widest_gap_bridged
from volseg.volumes.dicom.finding.choice import choose
from volseg.volumes.dicom.finding.keys import interleaved
from volseg.volumes.dicom.finding.series import survey
from volseg.volumes.dicom.finding.sources import open_source
from volseg.volumes.dicom.geometry import Placement, describe_gaps, describe_tilt, irregularities, place
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.numbers import with_points
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.pixels.decoding import require_decoder
from volseg.volumes.dicom.pixels.stack import SliceStack
from volseg.volumes.volume import Space, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices")


def open_dicom(path: str | Path, options: DicomOptions = DicomOptions()) -> DicomVolume:  # noqa: B008  (frozen)
    """The CT series at `path` (a folder, a zip, a DICOMDIR) as a volume in Hounsfield units.

    Values are int16 where that is exact, else float32. Pixels that the scanner marked as padding are air, -1024 HU (see
    `pixels`). Slices are ordered and spaced by their positions. Exact copies of slices are left out. What `options`
    asks to be mended is mended only where it needs to be.

    Raises VolumeError, naming what is wrong and where, unless there is one series of CT slices (or `options` names
    one), in a transfer syntax that can be decoded, whose slices lie evenly along their normal (or may be corrected).
    """
    path = Path(path)
    chosen = choose(path, survey(open_source(path)), options.series)
    for image in {image.transfer_syntax: image for image in chosen.images}.values():
        require_decoder(image.transfer_syntax, image.name)
    placement, copies = without_copies(path, place(path, chosen.images))
    plan = _mended(path, placement, options)
    audit = account(placement, chosen, copies, plan.fixes if plan else ())
    return DicomVolume(path, placement, audit, plan)


class DicomVolume(Volume):
    """A series on the grid of its slices, or on a corrected one.

    images     the slices, in order along their normal
    placement  where they lie
    plan       how the grid follows from them; None: it is theirs
    corrected  whether the grid is not that of the slices: voxels were interpolated (see `audit.fixes`)
    """

    format = "DICOM"
    whole_slices = True

    def __init__(self, path: Path, placement: Placement, audit: Audit, plan: Plan | None) -> None:
        self.path, self.audit, self.placement, self.plan = path, audit, placement, plan
        self.space: Space = placement.space() if plan is None else plan.space
        self._stack = SliceStack(placement.images)
        self.dtype = self._stack.dtype

    @property
    def images(self) -> tuple[Image, ...]:
        return self._stack.images

    @property
    def corrected(self) -> bool:
        return self.plan is not None

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if not out.size:
            return out
        if self.plan is not None:
            return interpolated_slices(self._stack, self.plan, box, out)
        for index in range(box.shape[0]):
            out[index] = self._stack.read(box.start[0] + index)[box.slices[1:]]
        return out

    def close(self) -> None:
        self._stack.close()

    def source_datasets(self) -> list[Dataset]:
        """The full header of each file, without pixels, in the order of the slices; a multi-frame file once.

        Raises VolumeError where a file cannot be read any more.
        """
        entries = {image.entry.name: image.entry for image in self.images}
        return [_header(entry) for entry in entries.values()]


def _header(entry: Any) -> Dataset:
    from pydicom import dcmread

    try:
        with entry.open() as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that volseg does not use
            dataset = dcmread(file, stop_before_pixels=True, force=True)
            for keyword, number in with_points({key: dataset.get(key) for key in PLACE if key in dataset})[0].items():
                dataset[keyword].value = number
            return dataset
    except VolumeError:
        raise
    except Exception as error:  # pydicom reports damage by many types
        raise VolumeError(f"{entry.name}: a damaged DICOM file ({error}); copy it again") from error


def _mended(path: Path, placement: Placement, options: DicomOptions) -> Plan | None:
    """The plan of the corrections that are needed and wished for; None where the series is regular.

    Raises VolumeError, with all that is wrong at once, where something is that was not asked to be mended.
    """
    faults, remedies = irregularities(placement), []
    if faults:
        raise VolumeError(f"{path}: {'; '.join(faults)}; take out what does not belong, or export the series again")
    tilted, uneven = placement.is_tilted, not placement.is_even
    if tilted and not options.fix_tilt:
        faults.append(describe_tilt(placement))
        remedies.append("--fix-tilt shears the slices back")
    mixed = interleaved(placement.images) if uneven else None
    if mixed is not None:
        faults.append(f"{describe_gaps(placement)}, of several acquisitions in turn ({mixed})")
        remedies.append("export each of them as a series of its own")
    elif uneven and not options.resample_gaps:
        faults.append(describe_gaps(placement))
        bridged = float(placement.gaps.max()) <= widest_gap_bridged(placement)
        way = "--resample-gaps interpolates onto an even grid" if bridged else "give one side of the widest gap"
        remedies.append(f"find the missing slices, or {way}")
    if faults:
        raise VolumeError(f"{path}: {'; '.join(faults)}: {', and '.join(remedies)}")
    return plan_corrections(path, placement, tilt=tilted, gaps=uneven) if tilted or uneven else None
