"""From the stored bytes of a frame to its stored values, for every transfer syntax that CT comes in.

Uncompressed pixels are read here. For the rest pydicom drives decoders that come as permissively licensed wheels; which
one a syntax needs is in NEEDS, so that where it is absent the message can name it.
"""

from __future__ import annotations

import struct
import warnings

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom.pixels.decoder_process import DecoderProcess
from volseg.volumes.dicom.pixels.stream import PixelStream
from volseg.volumes.dicom.pixels.syntaxes import what_it_is

OPENJPEG, JPEGLS, GDCM = "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm"
RLE = "1.2.840.10008.1.2.5"
NEEDS = {
    "1.2.840.10008.1.2.4.50": ("pillow",),
    "1.2.840.10008.1.2.4.51": ("pillow", GDCM),
    "1.2.840.10008.1.2.4.57": (GDCM,),
    "1.2.840.10008.1.2.4.70": (GDCM,),
    "1.2.840.10008.1.2.4.80": (JPEGLS,),
    "1.2.840.10008.1.2.4.81": (JPEGLS,),
    "1.2.840.10008.1.2.4.90": (OPENJPEG,),
    "1.2.840.10008.1.2.4.91": (OPENJPEG,),
    "1.2.840.10008.1.2.4.201": (OPENJPEG,),
    "1.2.840.10008.1.2.4.202": (OPENJPEG,),
    "1.2.840.10008.1.2.4.203": (OPENJPEG,),
    RLE: ("pydicom",),
}
"""The wheels that decode a compressed transfer syntax, the preferred one first.

GDCM could decode nearly all of them, but ends the process on damaged codestreams, so it decodes only what nothing else
does, and outside, as JPEG-LS is (see `decoder_process`). JPEG Extended is Pillow's where it has 8 bits, GDCM's where it
has 12.
"""
_OUTSIDE = DecoderProcess()

PLUGINS = {OPENJPEG: "pylibjpeg", JPEGLS: "pyjpegls", GDCM: "gdcm", "pillow": "pillow", "pydicom": "pydicom"}


def require_decoder(syntax: str, name: str) -> None:
    """Raise VolumeError, naming the syntax and the wheel to install, where `name` could not be decoded."""
    from pydicom.uid import UID

    uid = UID(syntax)
    if uid.is_transfer_syntax and not uid.is_encapsulated:
        return
    what = f"transfer syntax {uid.name} ({uid})" if uid.name != uid else f"transfer syntax {uid}"
    if syntax not in NEEDS:
        raise VolumeError(f"{name}: {what} has no decoder here: {what_it_is(syntax)}")
    if not _available(syntax):
        raise VolumeError(f"{name}: {what} has no decoder here; pip install {' or '.join(NEEDS[syntax])}")


def stored_values(stream: PixelStream, index: int, name: str) -> np.ndarray:
    """The stored values [rows, columns] of one frame, signed or not as the header says.

    Raises VolumeError where the frame is truncated, damaged, or no decoder can read it.
    """
    return stored_bits(stream, pixel_cells(stream, index, name))


def pixel_cells(stream: PixelStream, index: int, name: str) -> np.ndarray:
    """The same with all the bits allocated: what a padding value may reach into. Raises VolumeError likewise."""
    data = stream.frame(index)
    header = stream.header
    values = _decoded(stream, data, name) if stream.syntax.is_encapsulated else _native(stream, data)
    shape = (int(header.Rows), int(header.Columns))
    if values.shape != shape:
        raise VolumeError(f"{name}: pixels of shape {values.shape}, its header promises {shape}")
    return values


def stored_bits(stream: PixelStream, cells: np.ndarray, padded: np.ndarray | None = None) -> np.ndarray:
    """The bits stored, of a frame's cells [rows, columns] (PS3.5 8.1.1); the others may hold anything.

    Where cells reach beyond them, either those bits are refuse (or overlays, or a sign that was not carried on), or the
    header says too few, or the cells are in the other byte order. An image is smooth, so whichever way it is smoother
    is right; but in the first case the cells stay as they are, for `hounsfield` to refuse. Cells `padded` are not
    looked at.
    """
    header, width = stream.header, 8 * cells.dtype.itemsize
    stored, high = int(header.BitsStored), int(header.HighBit)
    if high != stored - 1:
        shifted: np.ndarray = (cells << (width - 1 - high)) >> (width - stored)
        return shifted
    if width <= stored:
        return cells
    kept: np.ndarray = (cells << (width - stored)) >> (width - stored)
    beyond = kept != cells if padded is None else (kept != cells) & ~padded
    if not beyond.any():
        return cells
    others = min(_roughness(cells, padded), _roughness(cells.byteswap(), padded))
    return kept if stream.overlays or _roughness(kept, padded) <= others else cells


def _roughness(values: np.ndarray, padded: np.ndarray | None) -> float:
    """The sum of all steps between neighbours, without those in padding."""
    whole = values.astype(np.float64)
    if padded is not None:
        whole[padded] = np.nan
    return float(sum(np.nansum(np.abs(np.diff(whole, axis=axis))) for axis in (0, 1)))


def _native(stream: PixelStream, data: bytes) -> np.ndarray:
    header = stream.header
    kind = "i" if header.get("PixelRepresentation") == 1 else "u"
    if header.BitsAllocated == 8 and stream.words and not stream.syntax.is_little_endian:
        data = np.frombuffer(data[: len(data) // 2 * 2], np.uint16).byteswap().tobytes() + data[len(data) // 2 * 2 :]
    order = "<" if stream.syntax.is_little_endian else ">"
    dtype = np.dtype(f"{order}{kind}{header.BitsAllocated // 8}")
    return np.frombuffer(data, dtype).reshape(header.Rows, header.Columns).astype(dtype.newbyteorder("="), copy=False)


def _decoded(stream: PixelStream, data: bytes, name: str) -> np.ndarray:
    from pydicom.pixels import get_decoder

    require_decoder(str(stream.syntax), name)
    _require_size(stream, data, name)
    dataset, decoder, faults = _one_frame(stream, data), get_decoder(stream.syntax), []
    for wheel in _available(str(stream.syntax)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of oddities that do not touch the pixels
                if wheel in (GDCM, JPEGLS):
                    return _outside(stream, data)
                values: np.ndarray = decoder.as_array(dataset, decoding_plugin=PLUGINS[wheel])[0]
                return values
        except Exception as error:  # each decoder has its own errors
            faults.append(f"{wheel}: {_reason(error)}")
    raise VolumeError(
        f"{name}: pixels cannot be decoded from {stream.syntax.name} ({'; '.join(faults)}); copy the file again"
    )


def _outside(stream: PixelStream, data: bytes) -> np.ndarray:
    header = stream.header
    signed = int(header.get("PixelRepresentation") or 0)
    decoded = _OUTSIDE.decode(
        data,
        syntax=str(stream.syntax),
        meaning=str(header.PhotometricInterpretation),
        rows=int(header.Rows),
        columns=int(header.Columns),
        allocated=int(header.BitsAllocated),
        stored=int(header.BitsStored),
        signed=signed,
    )
    if len(decoded) != stream.frame_bytes:
        raise ValueError(f"{len(decoded)} bytes of pixels, its header promises {stream.frame_bytes}")
    dtype = np.dtype(f"{'i' if signed else 'u'}{header.BitsAllocated // 8}")
    return np.frombuffer(decoded, dtype).reshape(header.Rows, header.Columns)


def _available(syntax: str) -> list[str]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    plugins = get_decoder(UID(syntax)).available_plugins
    return [wheel for wheel in NEEDS[syntax] if PLUGINS[wheel] in plugins]


def _one_frame(stream: PixelStream, data: bytes) -> object:
    """A data set of that frame alone, as pydicom's decoders want it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = stream.syntax
    for keyword in ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"):
        setattr(dataset, keyword, stream.header.get(keyword))
    dataset.SamplesPerPixel, dataset.NumberOfFrames = 1, 1
    dataset.PixelRepresentation = int(stream.header.get("PixelRepresentation") or 0)
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    return dataset


def _require_size(stream: PixelStream, data: bytes, name: str) -> None:
    """A decoder allocates what the codestream asks for; it must ask for what the header promises, one component."""
    if stream.syntax == RLE:  # has no size of its own
        return
    size = _coded_size(data)
    promised = (int(stream.header.Rows), int(stream.header.Columns), 1)
    if size is None:
        raise VolumeError(f"{name}: compressed pixels that do not say their size; copy the file again")
    if size != promised:
        found, expected = (f"{rows} x {columns} x {components}" for rows, columns, components in (size, promised))
        raise VolumeError(f"{name}: compressed pixels of {found}, its header promises {expected}; copy the file again")


def _reason(error: Exception) -> str:
    """What a decoder says, in one line; pydicom puts it last, after the decoder's name."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].split(": ", 1)[-1].strip()


def _coded_size(data: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, components) that a JPEG, JPEG-LS or JPEG 2000 codestream says it has; None where it does not."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # wrapped in the boxes of a JP2 file, or bare
    if start >= 0 and len(data) >= start + 42:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return bottom - top, right - left, struct.unpack_from(">H", data, start + 40)[0]
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # a start of frame
            rows, columns, components = struct.unpack_from(">HHB", data, at + 5)
            return rows, columns, components
        if marker in (0xD9, 0xDA):  # the end, or pixels before any frame
            return None
        at += 1 if marker == 0xFF else 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None
