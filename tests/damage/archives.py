"""Zip archives and DICOMDIRs that lie about what they hold and where it is."""

from __future__ import annotations

import io
import shutil
import warnings
import zipfile
from pathlib import Path

from pydicom.data import get_testdata_file

from damage.dicom import ct_slices
from damage.flips import Random, damage_bytes


def dicomdir(rng: Random, folder: Path) -> Path:
    """A DICOMDIR with bytes damaged, or with references that lead elsewhere, as do its files."""
    source = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests"
    shutil.copytree(source / "98892001", folder / "98892001")
    names = [
        "DICOMDIR",
        "DICOMDIR-bigEnd",
        "DICOMDIR-implicit",
        "DICOMDIR-nooffset",
        "DICOMDIR-reordered",
        "DICOMDIR-nopatient",
    ]
    data = (source / str(rng.choice(names))).read_bytes()
    if rng.random() < 0.4:
        data = damage_bytes(rng, data)
    else:
        old = str(rng.choice(["98892001\\CT5N\\2062", "98892001\\CT5N", "CT5N"])).encode()
        bad = rng.choice(
            [
                "..\\..\\..\\..\\etc\\passwd",
                "..",
                "C:\\boot.ini",
                "\\etc\\passwd",
                "/etc/passwd",
                "a" * 300,
                "DICOMDIR",
                ".",
            ]
        )
        new = str(bad).encode()[: len(old)].ljust(len(old))
        data = data.replace(old, new)
    path = folder / "DICOMDIR"
    path.write_bytes(data)
    return path


def archive(rng: Random, folder: Path) -> Path:
    """A zip of a series with names that lead out of it, bombs, lies in its directory, or bytes damaged."""
    path = folder / "scans.zip"
    what = int(rng.integers(8))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that occur twice
        for number, data in enumerate(ct_slices()):
            zipped.writestr(_member_name(rng, number, what), data)
        if what == 1:
            zipped.writestr("bomb.dcm", ct_slices()[0][:200] + bytes(int(rng.choice([10**7, 5 * 10**7]))))
        if what == 2:
            for number in range(int(rng.choice([10, 3000]))):
                zipped.writestr(f"many/{number}", b"")
        if what == 3:
            zipped.writestr("inner.zip", buffer.getvalue())
    data = buffer.getvalue()
    if what == 4:
        data = damage_bytes(rng, data)
    elif what == 5:
        data = data[: int(rng.integers(len(data) * 3 // 4, len(data)))]
    elif what == 6:
        data = _lying_directory(rng, data)
    path.write_bytes(data)
    return path


def _member_name(rng: Random, number: int, what: int) -> str:
    if what != 0:
        return f"CT/{number}.dcm"
    pool = (
        "../../{}.dcm",
        "/tmp/volseg-slip/{}.dcm",
        "C:\\{}.dcm",
        "..\\..\\{}.dcm",
        "a/../../{}",
        "same",
        "\u202e{}.dcm",
        "n" * 250 + "{}",
        "CON{}",
    )
    return str(rng.choice(pool)).format(number)


def _lying_directory(rng: Random, data: bytes) -> bytes:
    """A field of a central directory record overwritten: flags (encryption), method, sizes, offset."""
    out = bytearray(data)
    records = [n for n in range(len(out) - 4) if out[n : n + 4] == b"PK\x01\x02"]
    at = int(rng.choice(records))
    field, size = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (42, 4)][int(rng.integers(6))]
    value = int(rng.choice([0, 1, 9, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])) & (2 ** (8 * size) - 1)
    out[at + field : at + field + size] = value.to_bytes(size, "little")
    return bytes(out)
