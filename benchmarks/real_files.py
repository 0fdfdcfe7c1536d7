"""The real files that readers are compared on: the scans beside the repository and those inside packages.

A case is what a user would hand over: a NIfTI file, a folder with one DICOM file or series, a DICOMDIR.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """One row of the table.

    name     for the table: package or folder, then the path inside it
    kind     "nifti", "dicom" (a folder) or "dicomdir"
    files    the file of a NIfTI; the DICOM files, to be put into one folder; the DICOMDIR
    root     a folder that is given as it is (its subfolders included), instead of `files`
    options  what volseg is asked for besides: "fix_tilt", "resample_gaps"
    """

    name: str
    kind: str
    files: tuple[Path, ...] = ()
    root: Path | None = None
    options: tuple[str, ...] = ()

    def stage(self, folder: Path) -> Path:
        """The path to give to a reader; single DICOM files are first copied into `folder`, away from others."""
        if self.kind != "dicom":
            return self.files[0]
        if self.root is not None:
            return self.root
        for file in self.files:
            shutil.copy(file, folder / file.name)
        return folder


def all_cases() -> list[Case]:
    """Every case whose files are here, in the table's order."""
    return [*shared_cases(), *pydicom_cases(), *pydicom_data_cases(), *nibabel_cases()]


def shared_folder() -> Path:
    """The folder of real CT: VOLSEG_TEST_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("VOLSEG_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def shared_cases() -> Iterator[Case]:
    """The scans beside the repository, the tilted head with each of volseg's corrections too."""
    data = shared_folder()
    for name in ("abdomen_ct/ct.nii.gz", "abdomen_ct/labels.nii.gz", "abdomen_dicom/labels_117.nii.gz"):
        if (data / name).is_file():
            yield Case(f"shared {name}", "nifti", (data / name,))
    if (data / "abdomen_dicom").is_dir():
        yield Case("shared abdomen_dicom/series", "dicom", root=data / "abdomen_dicom" / "series")
        head = data / "head_ct_tilted"
        yield Case("shared head_ct_tilted", "dicom", root=head)
        yield Case("shared head_ct_tilted, --fix-tilt", "dicom", root=head, options=("fix_tilt",))
        both = ("fix_tilt", "resample_gaps")
        yield Case("shared head_ct_tilted, --fix-tilt --resample-gaps", "dicom", root=head, options=both)


def pydicom_cases() -> Iterator[Case]:
    """The DICOM files in pydicom's wheel: each alone, and the folders of its DICOMDIRs as series and as a whole."""
    folder = package_folder("pydicom", "data", "test_files")
    if folder is None:
        return
    yield from _single_files("pydicom", folder)
    discs = folder / "dicomdirtests"
    yield Case("pydicom dicomdirtests/ (whole folder)", "dicom", root=discs)
    for path in sorted(
        {file.parent for file in discs.rglob("*") if file.parent != discs and "README" not in file.name}
    ):
        files = tuple(sorted(f for f in path.iterdir() if f.is_file() and f.name not in ("DICOMDIR", "README")))
        if files:
            yield Case(f"pydicom {path.relative_to(folder)}", "dicom", files)
    for path in [*sorted(discs.glob("DICOMDIR*")), discs / "TINY_ALPHA" / "DICOMDIR"]:
        yield Case(f"pydicom {path.relative_to(folder)}", "dicomdir", (path,))


def pydicom_data_cases() -> Iterator[Case]:
    """The DICOM files of the package pydicom-data, each alone."""
    folder = package_folder("data_store", "data")
    if folder is not None:
        yield from _single_files("pydicom-data", folder)


def nibabel_cases() -> Iterator[Case]:
    """The NIfTI and Analyze files in nibabel's wheel, and its two DICOM slices."""
    folder = package_folder("nibabel", "tests", "data")
    if folder is None:
        return
    for file in sorted(folder.iterdir()):
        if file.name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
            yield Case(f"nibabel {file.name}", "nifti", (file,))
    if slices := tuple(sorted(folder.glob("*.dcm"))):
        yield Case("nibabel 0.dcm, 1.dcm", "dicom", slices)


def package_folder(package: str, *below: str) -> Path | None:
    """A folder inside an installed package, found without importing it; None where it is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.joinpath(*below)
    return folder if folder.is_dir() else None


def _single_files(label: str, folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*.dcm")):
        yield Case(f"{label} {file.name}", "dicom", (file,))
