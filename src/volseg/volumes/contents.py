"""What a file is that is no volume volseg reads, told by its first bytes whatever its name, and what brings it in."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

HEAD = 1024  # bytes that are looked at
ANOTHER = "copy or download it again"
NIFTI_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}
ENDINGS = (
    ".gz", ".nii", ".bz2", ".xz", ".zst", ".zip", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".mnc", ".hdr",
    ".img", ".seg", ".tar", ".tgz", ".gipl",
)  # fmt: skip


class Kind(NamedTuple):
    """What a file is, in words, and what to do: a command where there is one.

    is_nifti  it is NIfTI after all
    archive   it is a zip or DICOM, in which a series may be
    vague     its first bytes say little, and its name may say more
    """

    what: str
    remedy: str
    is_nifti: bool = False
    archive: bool = False
    vague: bool = False

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def kind_of(path: Path) -> Kind | None:
    """What the file at `path` is; None where its beginning says nothing, or it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if size == 0:
        return Kind("empty (0 bytes)", ANOTHER)
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        head, whole = _inflated(head), head
        if head[:2] == b"\x1f\x8b":
            return Kind("gzip within gzip", f"unpack it once: gzip -dc < {_quoted(path)} > {_other(path, '.nii.gz')}")
        if not head:
            cut = f"gzip of {size} bytes without any contents" if len(whole) == size else "damaged gzip"
            return Kind(cut, ANOTHER)
    for matches, describe in _KINDS:
        if matches(head):
            kind = describe(path, head)
            if packed and not (kind.is_nifti or kind.archive or "nib-convert" in kind.remedy):
                return Kind(f"gzip of what is {kind.what}", f"unpack it, then: {kind.remedy}")
            return kind
    return None


def _inflated(head: bytes) -> bytes:
    """The beginning of a gzip file's contents, as far as it goes."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD)
    except zlib.error:
        return b""


def is_nifti(head: bytes) -> bool:
    """Whether a file's first bytes are a NIfTI header."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(head[:4], order)
        if size in NIFTI_MAGIC:
            place = 4 if size == 540 else 344
            return head[place : place + 4] in NIFTI_MAGIC[size]
    return False


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _other(path: Path, ending: str) -> str:
    """A name beside `path`, another one than its own, quoted."""
    stem = path.name
    while any(stem.lower().endswith(known) and len(stem) > len(known) for known in ENDINGS):
        stem = stem[: stem.rindex(".")]
    other = path.with_name(stem + ending)
    return _quoted(path.with_name(f"{stem}_1{ending}") if other == path or other.exists() else other)


def _begins(*signs: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signs)


def _says(pattern: bytes) -> Callable[[bytes], bool]:
    """Text, after blanks and a byte order mark."""
    return lambda head: re.match(rb"(\xef\xbb\xbf)?\s*(?:" + pattern + rb")", head, re.IGNORECASE) is not None


def _fixed(what: str, remedy: str) -> Callable[[Path, bytes], Kind]:
    return lambda path, head: Kind(what, remedy)


def _unpacked(what: str, program: str) -> Callable[[Path, bytes], Kind]:
    return lambda path, head: Kind(what, f"unpack it: {program} -dc < {_quoted(path)} > {_other(path, '.nii')}")


def _through_itk(what: str) -> Callable[[Path, bytes], Kind]:
    def kind(path: Path, head: bytes) -> Kind:
        script = f"import SimpleITK as s; s.WriteImage(s.ReadImage({str(path)!r}), {_plain_other(path)!r})"
        return Kind(what, f"convert it (pip install SimpleITK): python -c {shlex.quote(script)}")

    return kind


def _plain_other(path: Path) -> str:
    return shlex.split(_other(path, ".nii.gz"))[0]


def _pointer(path: Path, head: bytes) -> Kind:
    size = re.search(rb"\nsize (\d+)", head)
    real = f" to a file of {int(size[1]):,} bytes" if size else ""
    return Kind(f"a Git LFS pointer{real}", f"fetch the file itself: git lfs pull --include={_quoted(Path(path.name))}")


def _annex(path: Path, head: bytes) -> Kind:
    return Kind("a git-annex pointer", f"fetch the file itself: git annex get {_quoted(path)}")


def _archive(path: Path, head: bytes) -> Kind:
    return Kind("a zip archive", f"unpack it: unzip {_quoted(path)}", archive=True)


def _dicom(path: Path, head: bytes) -> Kind:
    return Kind(
        "a DICOM file", f"give the folder of its series, or a multi-frame file as {_other(path, '.dcm')}", archive=True
    )


def _mgh(path: Path, head: bytes) -> Kind:
    return Kind("a FreeSurfer volume (MGH)", f"convert it: nib-convert {_quoted(path)} {_other(path, '.nii.gz')}")


def _is_mgh(head: bytes) -> bool:
    """Version 1, then width, height, depth, frames and one of its four types."""
    numbers = [int.from_bytes(head[n : n + 4], "big") for n in range(0, 24, 4)]
    return numbers[0] == 1 and all(0 < number < 65536 for number in numbers[1:5]) and numbers[5] in (0, 1, 3, 4)


def _text(path: Path, head: bytes) -> Kind:
    line = head.decode("ascii", "replace").strip().splitlines()[0][:60]
    return Kind(f"text, which begins {line!r}", ANOTHER, vague=True)


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and all(byte in b"\t\r\n\f" or 32 <= byte < 127 for byte in head)


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[Path, bytes], Kind]], ...] = (
    (is_nifti, lambda path, head: Kind("NIfTI", "", is_nifti=True)),
    (lambda head: head[128:132] == b"DICM", _dicom),
    (_begins(b"PK\x03\x04", b"PK\x05\x06"), _archive),
    (_begins(b"version https://git-lfs"), _pointer),
    (_says(rb"(\.\./)*(\.git)?/annex/objects/"), _annex),
    (_says(rb"<!doctype html|<html|<head|<!--.*<html"), _fixed("a web page, saved in the file's place",
     "download the file again (where it asks for a login, with it)")),
    (_says(rb"<\?xml|<error"), _fixed("an XML text, perhaps a server's answer", "download the file again")),
    (_begins(b"NRRD0"), _through_itk("a NRRD image")),
    (_says(rb"[a-z]\w* *= *[^\n]*\n(?s:.*)\bNDims *=|NDims *=|ObjectType *="), _through_itk("a MetaImage")),
    (_is_mgh, _mgh),
    (_begins(b"BZh"), _unpacked("bzip2", "bzip2")),
    (_begins(b"\xfd7zXZ\0"), _unpacked("xz", "xz")),
    (_begins(b"\x28\xb5\x2f\xfd"), _unpacked("Zstandard", "zstd")),
    (_begins(b"\x04\x22\x4d\x18"), _unpacked("LZ4", "lz4")),
    (_begins(b"7z\xbc\xaf\x27\x1c"), lambda path, head: Kind("a 7z archive", f"unpack it: 7z x {_quoted(path)}")),
    (_begins(b"Rar!"), lambda path, head: Kind("a RAR archive", f"unpack it: unrar x {_quoted(path)}")),
    (lambda head: head[257:262] == b"ustar",
     lambda path, head: Kind("a tar archive", f"unpack it: tar -xf {_quoted(path)}")),
    (_begins(b"\x89HDF", b"CDF\x01", b"CDF\x02"),
     lambda path, head: Kind("HDF5 or netCDF (MINC?)", f"convert MINC with: mnc2nii {_quoted(path)}")),
    (_begins(b"\x93NUMPY"), _fixed("a NumPy array, which knows no spacing", "save it as NIfTI, with nibabel")),
    (_begins(b"II*\0", b"MM\0*", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"%PDF"),
     _fixed("a picture or document, no volume in space", "give .nii, .nii.gz or DICOM of what it shows")),
    (_is_text, _text),
    (lambda head: not any(head), _fixed("zeros at its beginning, as an unfinished copy leaves", ANOTHER)),
)  # fmt: skip
