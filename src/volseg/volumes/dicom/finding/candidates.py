"""The volumes that a source might mean, and how they are listed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from volseg.errors import first_few
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom.finding.screening import image_type, shown
from volseg.volumes.dicom.image import Image, without_folders
from volseg.volumes.tolerance import SAME_PLACE

UID_TAIL = 12
PLANES = ("sagittal", "coronal", "axial")  # by the patient's axis nearest their normal
COLUMNS = ("#", "slices", "rows x columns", "spacing mm", "plane", "kind", "description", "series UID")
TOLD_APART = "told apart by"


@dataclass(frozen=True)
class Candidate:
    """Images that may form one volume: of one series, size, orientation and pixel spacing; two at least.

    number      from 1, as the table shows it
    part        from 1, where a series was divided into several volumes (see `acquisitions`); else None
    differs     what tells the part from the others, in words: "AcquisitionNumber 1"
    images      in the order of the source, not yet of their positions
    orientation, pixel_spacing  of the first image: [6] directions along a row and down a column; (rows, columns) mm
    dropped     what else the source held, and why it is no part of the volume. Of a candidate from `survey`: what
                belongs to no candidate. Of one from `choose`: everything else
    faults      images of the same series that ought to fit and do not: `choose` refuses the candidate for them
    warnings    what a reader should know, for `Audit.warnings`
    """

    number: int
    series_uid: str
    images: tuple[Image, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, float]
    dropped: tuple[Dropped, ...] = ()
    faults: tuple[Dropped, ...] = ()
    warnings: tuple[str, ...] = ()
    part: int | None = None
    differs: str = ""

    @property
    def label(self) -> str:
        """What the table calls it, and --series takes: "2", or "2.1" for a part of it."""
        return str(self.number) if self.part is None else f"{self.number}.{self.part}"

    @property
    def slices(self) -> int:
        """Images; two at one position count twice."""
        return len(self.images)

    @property
    def rows(self) -> int:
        return int(self.images[0].get("Rows"))

    @property
    def columns(self) -> int:
        return int(self.images[0].get("Columns"))

    @property
    def modality(self) -> str:
        return shown(self.images[0].get("Modality", ""))

    @property
    def description(self) -> str:
        return shown(self.images[0].get("SeriesDescription", ""))

    @property
    def series_number(self) -> str:
        return shown(self.images[0].get("SeriesNumber", ""))

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """mm in D, H, W: the median step between positions along the normal (0 where all lie at one), and of pixels."""
        across, down = np.reshape(self.orientation, (2, 3))
        positions = [image.get("ImagePositionPatient") for image in self.images]
        heights = np.sort(np.array(positions, np.float64) @ np.cross(across, down))
        steps = np.diff(heights)
        steps = steps[steps > SAME_PLACE * min(self.pixel_spacing)]
        return (float(np.median(steps)) if steps.size else 0.0, *self.pixel_spacing)

    @property
    def plane(self) -> str:
        """axial, coronal or sagittal, whichever is nearest; "axial, 18° off" where it leans by 1 degree or more."""
        normal = np.abs(np.cross(*np.reshape(self.orientation, (2, 3))))
        plane = PLANES[int(np.argmax(normal))]
        leaning = float(np.degrees(np.arccos(min(1.0, normal.max()))))
        return plane if leaning < 1 else f"{plane}, {leaning:.0f}° off"

    @cached_property
    def kind(self) -> str:
        """By the images' first words: original, derived, or mixed; the words of a derived one follow."""
        types = [image_type(image) for image in self.images]
        derived = [words for words in types if words[:1] == ["DERIVED"]]
        if not derived:
            return "original"
        return shown("\\".join(derived[0]).lower()) if len(derived) == len(types) else "mixed"


@dataclass(frozen=True)
class Survey:
    """All a source holds: the candidates, and what belongs to none of them."""

    candidates: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...]


def candidate_rows(survey: Survey) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of candidates: its columns, and one row of strings for each. The UID is shown by its end.

    Where a series was divided, a last column says by what.
    """
    rows = [_row(candidate) for candidate in survey.candidates]
    if all(candidate.part is None for candidate in survey.candidates):
        return COLUMNS, rows
    differing = [(*row, candidate.differs) for row, candidate in zip(rows, survey.candidates, strict=True)]
    return (*COLUMNS, TOLD_APART), list(differing)


def table_text(survey: Survey) -> str:
    """The same table in plain text, for a message."""
    columns, rows = candidate_rows(survey)
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows])
    return "\n".join(line.rstrip() for line in lines)


def some_names(names: Iterable[str]) -> str:
    """A few files, without their folders, for a message."""
    short = [without_folders(name).rsplit("!", 1)[-1] for name in names]
    return first_few(short)


def _row(candidate: Candidate) -> tuple[str, ...]:
    uid = candidate.series_uid
    return (
        candidate.label,
        str(candidate.slices),
        f"{candidate.rows} x {candidate.columns}",
        " x ".join(f"{step:.4g}" for step in candidate.spacing),
        candidate.plane,
        candidate.kind,
        candidate.description,
        uid if len(uid) <= UID_TAIL else f"...{uid[-UID_TAIL:]}",
    )
