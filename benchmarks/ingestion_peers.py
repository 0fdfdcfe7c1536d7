"""What volseg, SimpleITK, dcm2niix and dicom2nifti make of every real file at hand, and whether they agree.

    python benchmarks/ingestion_peers.py [--only TEXT] [--write]

Each reader reads each case in a process of its own with a time limit. Volumes are compared after orientation: voxels
and affine of volseg's against dcm2niix's (of NIfTI files, against nibabel's). `--write` puts the table into
docs/ingestion.md. The files are those of `real_files.py`; what is not installed has no row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dicom2nifti
import nibabel as nib
import numpy as np
import peers_table
import pydicom  # noqa: F401  (imported before the readers' processes are forked, as the others are)
import SimpleITK as sitk
from real_files import REPOSITORY, Case, all_cases

from volseg.errors import VolsegError
from volseg.geometry import Box
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.reading import open_volume

SECONDS = 60
# What dcm2niix says of nearly every file that is not from the newest scanners, and what has no bearing on the voxels.
ROUTINE = (
    "Empty protocol name",
    "Patient Position (0018,5100)",
    "Unable to determine manufacturer",
    "Instance number (0020,0013) not found",
    "Compressed image stored as",
)
NOTHING: dict[str, Any] = {"text": "", "volumes": []}
Outcome = dict[str, Any]  # "text": for the table; "volumes": [(name, array [D, H, W], affine)] as files, see `keep`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the table into docs/ingestion.md")
    given = parser.parse_args()
    outcomes = []
    for case in all_cases():
        if given.only in case.name:
            outcomes.append(row(case))
            print(f"| {' | '.join(outcomes[-1])} |", flush=True)
    names = ("SimpleITK", "dcm2niix", "dicom2nifti", "nibabel", "pydicom", "pydicom-data")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    table = "\n".join([*peers_table.rows(outcomes), "", versions])
    print(f"\n{table}")
    if given.write:
        peers_table.write(table, REPOSITORY / "docs" / "ingestion.md")


def row(case: Case) -> list[str]:
    """The cells of one case, in the order of `peers_table.COLUMNS`."""
    cells = [case.name]
    with tempfile.TemporaryDirectory(prefix="volseg-peers-") as name:
        outcomes = {}
        for reader in (read_volseg, read_simpleitk, read_dcm2niix, read_dicom2nifti, read_nibabel):
            work = Path(name) / reader.__name__
            outcomes[reader] = in_a_process(reader, case, work) if reads(reader, case) else NOTHING
            theirs = reader is not read_volseg and case.options
            cells.append("as above" if theirs else outcomes[reader]["text"])
        reference = read_nibabel if case.kind == "nifti" else read_dcm2niix
        cells[-1] = compared(outcomes[read_volseg], outcomes[reference])
    return [" ".join(cell.split()) for cell in cells]


def reads(reader: Any, case: Case) -> bool:
    """Whether the reader is for such files: only volseg takes a DICOMDIR, and the converters no NIfTI."""
    readers = {
        "nifti": (read_volseg, read_simpleitk, read_nibabel),
        "dicom": (read_volseg, read_simpleitk, read_dcm2niix, read_dicom2nifti),
        "dicomdir": (read_volseg,),
    }
    return reader in readers[case.kind]


def in_a_process(reader: Any, case: Case, work: Path) -> Outcome:
    """The outcome of one reader, or what became of its process."""
    for folder in ("in", "out", "home"):
        (work / folder).mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=child, args=(reader, case, work))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return {"text": f"no answer in {SECONDS} s", "volumes": []}
    result = work / "outcome.json"
    if not result.is_file():
        return {"text": f"crash (signal {-(process.exitcode or 0)})", "volumes": []}
    outcome: Outcome = json.loads(result.read_text())
    return outcome


def child(reader: Any, case: Case, work: Path) -> None:
    """Run a reader with its chatter kept in a file, and leave its outcome beside."""
    os.chdir(work)
    chatter = os.open(work / "chatter", os.O_CREAT | os.O_RDWR)
    os.dup2(chatter, 1)
    os.dup2(chatter, 2)
    warnings.simplefilter("ignore")
    try:
        outcome = reader(case, case.stage(work / "in"), work)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        outcome = {"text": f"**{type(error).__name__}**: {lines[-1].strip()}", "volumes": []}
    outcome["text"] = outcome["text"].replace(f"{work}/in/", "").replace(f"{work}/in", "FOLDER")
    outcome["text"] = re.sub(r"/\S*/(?=[^/\s]+)", "", outcome["text"])
    (work / "outcome.json").write_text(json.dumps(outcome))


def read_volseg(case: Case, path: Path, work: Path) -> Outcome:
    """What `volseg ingest` reads, or the first line of its refusal."""
    try:
        volume = open_volume(path, DicomOptions(**dict.fromkeys(case.options, True)))
        voxels = volume.read(Box.whole(volume.shape))
    except VolsegError as error:
        return {"text": f"refused: {str(error).splitlines()[0].removeprefix(f'{path}: ')}", "volumes": []}
    return made([keep(work, "volume", voxels, volume.space.affine)], [*volume.audit.fixes, *volume.audit.warnings])


def read_simpleitk(case: Case, path: Path, work: Path) -> Outcome:
    """ImageSeriesReader on the series that GDCM finds in each folder; ReadImage for NIfTI."""
    images = []
    if case.kind == "nifti":
        images.append(sitk.ReadImage(str(path)))
    else:
        for folder in sorted({str(file.parent) for file in path.rglob("*") if file.is_file()}):
            for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder):
                reader = sitk.ImageSeriesReader()
                reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder, series))
                images.append(reader.Execute())
    kept = [keep(work, f"series{n}", *from_simpleitk(image)) for n, image in enumerate(images)]
    return made(kept, warned(work))


def from_simpleitk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [D, H, W] and the affine to RAS+."""
    voxels = sitk.GetArrayViewFromImage(image)
    affine = np.eye(4)
    size = image.GetDimension()
    if size >= 3:
        directions = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
        affine[:3, :3] = directions * np.array(image.GetSpacing())[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
    return voxels, np.diag([-1, -1, 1, 1]) @ affine


def read_dcm2niix(case: Case, path: Path, work: Path) -> Outcome:
    """The files that dcm2niix writes; DICOM only."""
    command = [
        Path(sys.executable).with_name("dcm2niix"),
        "-z",
        "n",
        "-b",
        "n",
        "-f",
        "%s_%d",
        "-o",
        work / "out",
        path,
    ]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS - 5)
    said = re.findall(r"(?:Warning|Error): *([^\n]*)", done.stdout.decode(errors="replace"))
    said = [line for line in said if not line.startswith(ROUTINE)]
    return made(written(work), said, "" if done.returncode == 0 else f"exit code {done.returncode}")


def read_dicom2nifti(case: Case, path: Path, work: Path) -> Outcome:
    """The files that dicom2nifti writes, axes as they are; DICOM only."""
    if not any(inside.is_dir() for inside in path.iterdir()):
        dicom2nifti.dicom_series_to_nifti(str(path), str(work / "out" / "volume.nii"), reorient_nifti=False)
    else:
        dicom2nifti.convert_directory(str(path), str(work / "out"), compression=False, reorient=False)
    return made(written(work), warned(work))


def read_nibabel(case: Case, path: Path, work: Path) -> Outcome:
    """The reference for NIfTI."""
    image: Any = nib.load(path)
    return made([keep(work, "volume", np.asanyarray(image.dataobj).T, image.affine)], [])


def written(work: Path) -> list[list[str]]:
    """The volumes in the NIfTI files that a converter wrote."""
    kept = []
    for file in sorted((work / "out").glob("*.nii*")):
        image: Any = nib.load(file)
        kept.append(keep(work, file.name, np.asanyarray(image.dataobj).T, image.affine))
    return kept


def keep(work: Path, name: str, voxels: np.ndarray, affine: np.ndarray) -> list[str]:
    """Save a volume for the comparison; (words for the table, voxels' file, affine's file)."""
    stem = work / f"{len(list(work.glob('*.npy')))}"
    np.save(f"{stem}.npy", np.zeros(voxels.shape, "u1") if voxels.dtype.names else voxels)
    np.save(f"{stem}.affine.npy", affine)
    shape = "x".join(map(str, voxels.shape))
    spacing = " x ".join(f"{side:.4g}" for side in np.sqrt((affine[:3, :3] ** 2).sum(axis=0))[::-1])
    return [
        f"{shape} at {spacing} mm" + ("" if voxels.ndim == 3 else f" ({voxels.ndim}-D)"),
        f"{stem}.npy",
        f"{stem}.affine.npy",
    ]


def made(volumes: list[list[str]], remarks: list[str], trouble: str = "") -> Outcome:
    """The outcome of a reader that came to an end."""
    shapes = [words for words, _, _ in volumes]
    most = 3
    text = "; ".join(shapes[:most]) + (f"; and {len(shapes) - most} more" if len(shapes) > most else "")
    said = list(dict.fromkeys(remark.strip() for remark in remarks))
    quoted = f" (says: {'; '.join(said[:2])}{' ...' if len(said) > 2 else ''})" if said else ""
    return {"text": ((text or "nothing") + quoted + (f", {trouble}" if trouble else "")), "volumes": volumes}


def warned(work: Path) -> list[str]:
    """The warnings in what the libraries wrote to the process's output; ITK's second line holds the words."""
    text = (work / "chatter").read_text(errors="replace")
    return [re.sub(r"^.*?\): ", "", words) for words in re.findall(r"WARNING:[^\n]*\n([^\n]+)", text)]


def compared(ours: Outcome, theirs: Outcome) -> str:
    """Whether volseg's volume and one of the other reader's are the same after orientation, or how far apart."""
    if not ours["volumes"] or not theirs["volumes"]:
        return ""
    found = [apart(canonical(ours["volumes"][0]), canonical(volume)) for volume in theirs["volumes"]]
    return min(found, key=lambda pair: pair[0])[1]


def canonical(volume: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (i, j, k) and affine in the nearest RAS+ order; a fourth axis of length 1 is dropped."""
    voxels, affine = np.load(volume[1]).T, np.load(volume[2])
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(voxels, turn), affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape[:3])


def apart(ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]) -> tuple[float, str]:
    """(how bad, in words)."""
    if ours[0].shape != theirs[0].shape:
        return np.inf, "no: other shape"
    ends = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T * [
        [n] for n in (*np.subtract(ours[0].shape, 1), 1)
    ]
    moved = float(np.abs((ours[1] - theirs[1]) @ ends).max())
    same_affine = bool((ours[1].astype(np.float32) == theirs[1].astype(np.float32)).all())
    differing = ~np.isclose(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)
    words = "voxels yes"
    if differing.any():
        most = float(np.nanmax(np.abs(ours[0][differing].astype(float) - theirs[0][differing])))
        words = f"voxels **no** ({differing.mean():.1%} differ, by {most:.4g} at most)"
    words += ", affine yes" if same_affine else f", affine to {moved:.1g} mm"
    return moved + float(differing.mean()), words


if __name__ == "__main__":
    main()
