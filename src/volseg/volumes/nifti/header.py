"""What a NIfTI header says: where the voxels lie in the file, how they are scaled, and where they are in the patient.

Only the header's own 348 or 540 bytes are read, so nothing in a file can make this slow or large. nibabel parses them.

Which of a header's three positions counts is nibabel's rule: the sform if its code is above 0, else the qform if its
is, else the voxel sizes alone. Unlike nibabel, volseg turns metres and microns (``xyzt_units``) into millimetres, and
warns where the parts of a header contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.geometry import Triple, format_triple
from volseg.volumes.checks import check_affine
from volseg.volumes.contents import kind_of
from volseg.volumes.formats.nifti import NIFTI
from volseg.volumes.inflate import DamagedGzip, SeekableGzip
from volseg.volumes.nifti.forms import Forms, forms_of
from volseg.volumes.nifti.library import nibabel
from volseg.volumes.tolerance import OFF_GRID
from volseg.volumes.volume import Space

NIFTI1_BYTES, NIFTI2_BYTES = 348, 540
EXTENSION_FLAGS = 4  # bytes, behind the header of a single file
MILLIMETRES = {1: ("metres", 1000.0), 3: ("microns", 1e-3)}
ZOOM_TOLERANCE = 1e-3  # relative
CIFTI_INTENTS = range(3000, 3100)


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A header, understood.

    files      the file itself, or a pair's .hdr and .img
    data       the one of them that holds the voxels
    offset     where they begin in it (of a gzip file: in its contents)
    end        where the last of all channels ends
    channels   3-D volumes in the file, one after the other: the fourth axis of a 4-D image; 1 of a 3-D one
    raw        their type as stored, byte order included
    slope, intercept  value = stored * slope + intercept; 1 and 0 where the header sets none
    warnings, facts   as in `Audit`
    forms      where it says that its voxels lie, as it says it
    packed     whether `data` is gzip, whatever its name
    """

    path: Path
    files: tuple[Path, ...]
    data: Path
    space: Space
    offset: int
    end: int
    channels: int
    raw: np.dtype[Any]
    slope: float
    intercept: float
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    forms: Forms
    packed: bool


def read_header(path: Path, channel: int | None = None) -> NiftiHeader:
    """The header of the NIfTI-1 or NIfTI-2 file at `path`, or of the pair that it belongs to.

    channel  of a 4-D image, whose voxels `offset` is then the start of; None: the file must hold one volume

    Raises VolumeError where there is none, or where it describes no volume of numbers in space: Analyze 7.5 (which
    cannot tell left from right), CIFTI, more or fewer than three axes longer than 1 (four with `channel`), colours,
    complex numbers; where there is no such channel.
    """
    files = _pair(path)
    header_file, data_file = files[0], files[-1]
    head, packed = _head(header_file)
    header, forms, moved = _parse(path, head, pair=len(files) == 2)
    sizes = np.array(forms.pixdim[1:4], dtype=np.float64)  # as they stand: of 0 nibabel makes 1
    version = f"NIfTI-{forms.version}"
    _require(path, data_file)
    if data_file != header_file:
        packed = data_file.name.lower().endswith(".gz") and _is_gzip(data_file)
    try:
        shape, channels = _sides(tuple(int(n) for n in header.get_data_shape()), path, channel)
        offset, dtype = int(header.get_data_offset()), np.dtype(header.get_data_dtype())
        slope, intercept = header.get_slope_inter()
        doubts = _doubtful_sizes(path, sizes, _used(header))
        position, affine, warnings = _position(header, shape)
        warnings += [*doubts, *moved]
    except VolumeError:
        raise
    except Exception as error:  # nibabel reports a bad header by a dozen types
        raise _not_readable(path, error) from error
    if dtype.kind not in "iuf":
        what = "colour (RGB)" if dtype.kind == "V" else str(dtype)
        raise VolumeError(f"{path}: voxels are {what}; give an image of integers or real numbers")
    if offset < 0:
        raise VolumeError(f"{path}: its voxels would begin at byte {offset} (vox_offset); repair the header")
    check_affine(affine, path)
    volume_bytes = math.prod(shape) * dtype.itemsize
    scaling = (1.0, 0.0) if slope is None else (float(slope), float(intercept))
    first, end = offset + (channel or 0) * volume_bytes, offset + channels * volume_bytes
    facts = (
        ("header", f"{version}, {'big' if header.endianness == '>' else 'little'}-endian"),
        ("stored as", dtype.name + ("" if scaling == (1.0, 0.0) else ", times {:g} plus {:g}".format(*scaling))),
        ("position from", position),
    )
    return NiftiHeader(
        path=path, files=files, data=data_file, space=Space(shape, affine), offset=first, end=end, channels=channels,
        raw=dtype, slope=scaling[0], intercept=scaling[1], warnings=(*warnings, *_misnamed(data_file, packed)),
        facts=facts, forms=forms, packed=packed,
    )  # fmt: skip


def _pair(path: Path) -> tuple[Path, ...]:
    """The file itself, or (.hdr, .img); names keep their case."""
    name = path.name
    ending = name[-3:] if name.lower().endswith(".gz") else ""
    stem, half = name[: len(name) - len(ending) - 4], name[len(name) - len(ending) - 4 : len(name) - len(ending)]
    files: tuple[Path, ...] = (path,)
    if half.lower() in (".hdr", ".img"):
        halves = (".HDR", ".IMG") if half.isupper() else (".hdr", ".img")
        files = tuple(path.with_name(stem + other + ending) for other in halves)
    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    _require(path, files[0])
    return files


def _require(path: Path, file: Path) -> None:
    if not file.is_file():
        raise VolumeError(f"{path}: its other half, {file.name}, is missing; put both files into one folder")


def _head(file: Path) -> tuple[bytes, bool]:
    """The first bytes, as many as a NIfTI-2 header has or all there are, and whether the file is gzip: by its contents,
    for names are often wrong.
    """
    if not _is_gzip(file):
        with file.open("rb") as stream:
            return stream.read(NIFTI2_BYTES), False
    stream_of = SeekableGzip(file, NIFTI2_BYTES)
    head = bytearray(NIFTI1_BYTES)
    try:
        stream_of.read(0, head)
        if _sizeof_header(head)[0] == NIFTI2_BYTES:
            head = bytearray(NIFTI2_BYTES)
            stream_of.read(0, head)
    except (EOFError, DamagedGzip) as error:
        raise _not_readable(file, error) from error
    finally:
        stream_of.close()
    return bytes(head), True


def _is_gzip(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _misnamed(file: Path, packed: bool) -> list[str]:
    """A warning where the name says that the file is gzip and it is not, or the other way round."""
    named = file.name.lower().endswith(".gz")
    if named == packed:
        return []
    if packed:
        return [f"gzip, though its name does not say so; many programs refuse that: rename it {file.name}.gz"]
    return [f"not compressed, though its name says .gz; many programs refuse that: rename it {file.name[:-3]}"]


def _sizeof_header(head: bytes | bytearray) -> tuple[int, str]:
    """The header's first number, which tells its format and, by making sense in one of them only, its byte order."""
    for order in ("<", ">"):
        size = int(np.frombuffer(head[:4].ljust(4, b"\0"), f"{order}i4")[0])
        if size in (NIFTI1_BYTES, NIFTI2_BYTES):
            return size, order
    return 0, "<"


def _parse(path: Path, head: bytes, *, pair: bool) -> tuple[Any, Forms, list[str]]:
    """nibabel's header object, mended where nibabel mends it, its forms as they are stored, and what is doubtful."""
    nib = nibabel()

    size, order = _sizeof_header(head)
    magic = head[4:7] if size == NIFTI2_BYTES else head[344:347]
    if size == NIFTI1_BYTES and len(head) >= NIFTI1_BYTES and magic not in (b"n+1", b"ni1"):
        raise VolumeError(
            f"{path}: an Analyze 7.5 image, not NIfTI; it cannot say which side is left: convert it to .nii.gz with "
            "the software that wrote it"
        )
    if size == 0 or len(head) < size or magic not in (b"n+1", b"ni1", b"n+2", b"ni2"):
        raise _not_readable(path, ValueError("it does not begin with a NIfTI header"))
    one = size == NIFTI1_BYTES
    single, double = (
        (nib.Nifti1Header, nib.nifti1.Nifti1PairHeader) if one else (nib.Nifti2Header, nib.nifti2.Nifti2PairHeader)
    )
    try:
        with _silent_nibabel():
            kind = double if pair else single
            stored = kind(head[:size], endianness=order, check=False)
            forms = forms_of(stored, 1 if one else 2)
            doubts = _clamped_offset(path, stored, 0 if pair else size + EXTENSION_FLAGS)
            header: Any = kind(stored.binaryblock, endianness=order)
    except VolumeError:
        raise
    except Exception as error:
        raise _not_readable(path, error) from error
    if int(header["intent_code"]) in CIFTI_INTENTS:
        raise VolumeError(f"{path}: a CIFTI-2 file, which holds no volume; give a NIfTI image")
    return header, forms, doubts


def _clamped_offset(path: Path, header: Any, least: int) -> list[str]:
    """Move the voxels behind the header where they would begin within it, as the reference library nifti1_io does.

    A warning then. Raises VolumeError where the header says no place.
    """
    offset = float(header["vox_offset"])
    if not 0 <= offset < np.inf:
        raise VolumeError(f"{path}: its voxels would begin at byte {offset:g} (vox_offset); repair the header")
    if offset >= least:
        return []
    header["vox_offset"] = least
    return [f"vox_offset is {offset:g}, within the header; its voxels were read from byte {least} on"]


@contextmanager
def _silent_nibabel() -> Iterator[None]:
    """What nibabel mends it tells its log; a log without a handler prints on the screen."""
    from nibabel.imageglobals import logger

    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _sides(sides: tuple[int, ...], path: Path, channel: int | None) -> tuple[Triple, int]:
    """(D, H, W) from NIfTI's (i, j, k, 1, ...), and how many such volumes: NIfTI puts channels on axis 4, some on 5."""
    text = format_triple(sides)
    if sides and min(sides) < 1:
        raise VolumeError(f"{path}: an empty image ({text})")
    if len(sides) < 3:
        raise VolumeError(f"{path}: a {len(sides)}-D image ({text}); volseg reads 3-D volumes")
    (i, j, k), channels = sides[:3], math.prod(sides[3:])
    if channel is None and channels > 1:
        raise VolumeError(
            f"{path}: a {len(sides)}-D image ({text}) of {channels} volumes; volseg reads one volume a file: split it "
            "first, for instance with nibabel.four_to_three. Several channels of a data set may lie in one file"
        )
    if channel is not None and (not 0 <= channel < channels or max(sides[3:], default=1) != channels):
        raise VolumeError(f"{path}: an image of {text} has no channel {channel}; a fourth axis is wanted for channels")
    return (k, j, i), channels


def _position(header: Any, shape: Triple) -> tuple[str, np.ndarray, list[str]]:
    """Which part of the header gives the affine, the affine in mm, and warnings of contradictions."""
    warnings: list[str] = []
    affine = np.array(header.get_best_affine(), dtype=np.float64)
    zooms = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    used = _used(header)
    if used == "voxel sizes alone":
        nib = nibabel()

        codes = "".join(str(code) for code in nib.aff2axcodes(affine))
        warnings.append(
            f"neither sform nor qform is set, so where left is is not known; taken to be in {codes} order, as nibabel "
            "does: check left and right"
        )
    elif used == "sform":
        sides = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        if np.abs(zooms / sides - 1).max() > ZOOM_TOLERANCE if sides.all() else False:
            warnings.append(f"pixdim says voxels of {_mm(zooms)}, the sform {_mm(sides)} (i, j, k); the sform is used")
        if header["qform_code"] > 0:
            warnings += _contradiction(header, affine, shape)
    code = int(header["xyzt_units"]) & 7
    if code in MILLIMETRES:
        name, factor = MILLIMETRES[code]
        affine[:3] *= factor
        warnings.append(f"the header is in {name}; converted to mm: voxels of {_mm(zooms * factor)} mm (i, j, k)")
    elif code not in (0, 2):
        warnings.append(f"the header's unit of length has the unknown code {code}; taken to be mm")
    return used, affine, warnings


def _used(header: Any) -> str:
    return "sform" if header["sform_code"] > 0 else "qform" if header["qform_code"] > 0 else "voxel sizes alone"


def _doubtful_sizes(path: Path, sizes: np.ndarray, used: str) -> list[str]:
    """A warning of negative voxel sizes. Raises VolumeError where sizes that count are none."""
    if used == "sform":
        return []
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise VolumeError(
            f"{path}: voxels of {_mm(sizes)} mm (pixdim; i, j, k): no size; write the true ones into the header, for "
            f"instance with fslchpixdim {path.name} I J K"
        )
    return [f"pixdim says voxels of {_mm(sizes)} mm (i, j, k); taken without the sign"] if (sizes < 0).any() else []


def _contradiction(header: Any, sform: np.ndarray, shape: Triple) -> list[str]:
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except Exception:  # a quaternion that is none
        return ["the qform is damaged; the sform is used"]
    apart = Space(shape, sform).apart(Space(shape, qform))
    smallest = np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).min()
    if not apart > OFF_GRID * smallest:
        return []
    return [f"sform and qform lie up to {apart:.3g} mm apart; the sform is used"]


def _mm(sides: np.ndarray) -> str:
    return "x".join(f"{side:.4g}" for side in sides)


def _not_readable(path: Path, error: BaseException) -> VolumeError:
    kind = kind_of(path)
    if kind is not None and kind.read_as is not NIFTI:
        return VolumeError(f"{path}: not a readable NIfTI file but {kind}")
    return VolumeError(f"{path}: not a readable NIfTI file ({first_line(error)}); copy or download it again")
