"""NIfTI files with bytes, header fields and gzip streams damaged."""

from __future__ import annotations

import gzip
import struct
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from damage.flips import Random, damage_bytes


@cache
def niftis() -> tuple[tuple[str, bytes], ...]:
    """Small real files: (suffix, bytes)."""
    folder = Path(nib.__file__).parent / "tests" / "data"
    plain = (folder / "resampled_anat_moved.nii").read_bytes()
    image: Any = nib.load(folder / "resampled_anat_moved.nii")
    second = nib.Nifti2Image(np.asanyarray(image.dataobj), image.affine).to_bytes()
    big = nib.Nifti1Image(
        np.asanyarray(image.dataobj).astype(">i2"), image.affine, image.header.as_byteswapped(">")
    ).to_bytes()
    return (
        (".nii", plain),
        (".nii", second),
        (".nii", big),
        (".nii.gz", (folder / "standard.nii.gz").read_bytes()),
        (".nii.gz", gzip.compress(plain)),
    )


def nifti_bytes(rng: Random, folder: Path) -> Path:
    """A NIfTI file (or a pair) damaged anywhere, the compressed ones before or after compression."""
    suffix, data = _any_nifti(rng)
    if suffix == ".nii.gz" and rng.random() < 0.5:
        data = gzip.compress(damage_bytes(rng, gzip.decompress(data)), 1)
    else:
        data = damage_bytes(rng, data)
    return _nifti_file(rng, folder, suffix, data)


NIFTI_FIELDS = {  # of NIfTI-1: name and offset
    "sizeof_hdr": 0, "dim": 40, "intent_code": 68, "datatype": 70, "bitpix": 72, "pixdim": 76, "vox_offset": 108,
    "scl_slope": 112, "scl_inter": 116, "xyzt_units": 123, "qform_code": 252, "sform_code": 254, "quatern_b": 256,
    "quatern_c": 260, "qoffset_x": 268, "srow_x": 280, "srow_y": 296, "srow_z": 312, "magic": 344,
}  # fmt: skip


def nifti_values(rng: Random, folder: Path) -> Path:
    """Header fields of absurd values."""
    suffix, data = _any_nifti(rng)
    if suffix == ".nii.gz":
        data = gzip.decompress(data)
    out = bytearray(data)
    for name in rng.choice(list(NIFTI_FIELDS), int(rng.integers(1, 4)), replace=False):
        at = NIFTI_FIELDS[str(name)]
        if name in ("dim", "datatype", "bitpix", "qform_code", "sform_code", "intent_code"):
            for n in range(8 if name == "dim" and rng.random() < 0.5 else 1):
                shift = 2 * (n if n else int(rng.integers(8)) if name == "dim" else 0)
                out[at + shift : at + shift + 2] = struct.pack(
                    "<h", int(rng.choice([0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 128, 512, 768, 1024, 2304, 32767]))
                )
        elif name in ("magic", "sizeof_hdr"):
            out[at : at + 4] = [
                b"n+1\0",
                b"ni1\0",
                b"n+2\0",
                b"\0\0\0\0",
                struct.pack("<i", 540),
                struct.pack(">i", 348),
            ][int(rng.integers(6))]
        else:
            value = float(
                rng.choice([0, -1, 1, 0.5, np.nan, np.inf, 1e30, -1e30, 1e-30, 351.5, 352, 1e9, 2**31, 1e-45])
            )
            with np.errstate(over="ignore"):
                out[at : at + 4] = np.float32(value).tobytes()
    data = bytes(out)
    return _nifti_file(rng, folder, suffix, gzip.compress(data, 1) if suffix == ".nii.gz" else data)


def gzip_stream(rng: Random, folder: Path) -> Path:
    """Members appended, rubbish at the end, a checksum or length that lies, zeros that go on and on."""
    data = gzip.decompress(niftis()[4][1])
    whole = gzip.compress(data, 1)
    what = int(rng.integers(6))
    if what == 0:
        whole += gzip.compress(bytes(int(rng.choice([10, 10**7]))), 1)
    elif what == 1:
        whole += rng.bytes(int(rng.choice([1, 100])))
    elif what == 2:
        whole = whole[:-8] + rng.bytes(8)
    elif what == 3:
        cut = int(rng.integers(1, len(data)))
        whole = gzip.compress(data[:cut], 1) + gzip.compress(data[cut:], 1)[: int(rng.choice([5, 18, 10**6]))]
    elif what == 4:
        header = bytearray(data[:352])
        struct.pack_into("<hhh", header, 42, *(int(n) for n in rng.choice([1, 200, 3000, 32767], 3)))
        whole = gzip.compress(bytes(header) + bytes(int(rng.choice([0, 10**6, 10**7]))), 1)
    else:
        whole = damage_bytes(rng, whole)
    path = folder / "scan.nii.gz"
    path.write_bytes(whole)
    return path


def _any_nifti(rng: Random) -> tuple[str, bytes]:
    choices = niftis()
    return choices[int(rng.integers(len(choices)))]


def _nifti_file(rng: Random, folder: Path, suffix: str, data: bytes) -> Path:
    if suffix == ".nii" and rng.random() < 0.2:  # as a pair
        (folder / "scan.hdr").write_bytes(data[:348])
        (folder / "scan.img").write_bytes(data[352:])
        return folder / ("scan.hdr" if rng.random() < 0.5 else "scan.img")
    path = folder / f"scan{suffix}"
    path.write_bytes(data)
    return path
