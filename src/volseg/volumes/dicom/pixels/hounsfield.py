"""From the stored values of a slice to Hounsfield units.

Rescale slope and intercept are the slice's own. Values become int16 where that is exact, float32 otherwise. What the
scanner marked as padding, outside its round field of view, becomes air, and so does anything below -32768 HU: no tissue
or metal is there, only padding that was not declared, and it must not keep a common kind of scan (16 bits signed, with
an intercept of -1024) from being int16.

MONOCHROME1. PS3.3 C.7.6.3.1.2 makes the photometric interpretation a matter of display, after all other steps, and a
rescale of type HU gives HU whatever it says. But files whose values were inverted for display, with the rescale left as
it was, carry the same mark, and ITK (so SimpleITK, 3D Slicer, nnU-Net's readers) inverts them; dcm2niix and dicom2nifti
do not. So: where the header says ``RescaleType = HU`` the values are taken at its word, otherwise stored values are
inverted over the range of their bits (x becomes lowest + highest - x), as ITK does. A warning tells which was done.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.numbers import IN_THOUSANDS, as_written, numbers
from volseg.volumes.dicom.pixels.decoding import pixel_cells, stored_bits
from volseg.volumes.dicom.pixels.stream import PixelStream

AIR_HU = -1024
TISSUE_HU = (-1000, 3071)
INT16 = np.iinfo(np.int16)


def hounsfield_dtype(image: Image) -> np.dtype[Any]:
    """int16 where every value that the header allows from -32768 HU up is a whole number within it, else float32.

    Raises VolumeError where the header gives no rescale.
    """
    slope, intercept = rescale(image)
    if slope.is_integer() and intercept.is_integer():
        ends = [bound * slope + intercept for bound in _stored_range(image)]
        # A range that leaves int16 at both ends, or upwards, is more than undeclared padding.
        if max(ends) <= INT16.max and max(ends) > INT16.min:
            return np.dtype(np.int16)
    return np.dtype(np.float32)


def rescale(image: Image) -> tuple[float, float]:
    """RescaleSlope and RescaleIntercept. Raises VolumeError where there are none, or they make no sense."""
    values = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        value = image.get(keyword)
        if value is None:
            raise VolumeError(f"{image.name}: no {keyword}, so its values are in no known unit")
        try:
            (number,) = numbers(value, in_thousands=keyword in IN_THOUSANDS)
        except ValueError:
            raise VolumeError(
                f"{image.name}: {keyword} {as_written(value)!r} is not one number, so its values are in no known unit; "
                f'write the number that is meant: dcmodify -m "{keyword}=NUMBER" FILES'
            ) from None
        values.append(number)
    slope, intercept = values
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope != 0):
        raise VolumeError(f"{image.name}: RescaleSlope {slope}, RescaleIntercept {intercept} give no Hounsfield units")
    return slope, intercept


def is_inverted(image: Image) -> bool:
    """Whether stored values are inverted before they are rescaled (see above)."""
    meaning, unit = str(image.get("PhotometricInterpretation", "")), str(image.get("RescaleType", ""))
    return meaning == "MONOCHROME1" and unit.strip().upper() != "HU"


def hounsfield(image: Image, stream: PixelStream, dtype: np.dtype[Any]) -> np.ndarray:
    """The slice [rows, columns] in HU, as `dtype` (int16 only if `hounsfield_dtype` says so of it).

    Raises VolumeError where its pixels are truncated, damaged, cannot be decoded, or are not what the header promises.
    """
    cells = pixel_cells(stream, image.frame or 0, image.name)
    padded = _padding(image, cells)
    stored = stored_bits(stream, cells, padded)
    if stored is not cells and padded is not None:
        padded |= _padding(image, stored)
    _require_range(image, stored, padded)
    slope, intercept = rescale(image)
    flipped = sum(_stored_range(image)) - stored.astype(np.int64) if is_inverted(image) else stored
    values: np.ndarray
    if dtype.kind == "i":
        values = flipped.astype(np.int64)
        values *= int(slope)
        values += int(intercept)
    else:
        values = flipped * np.float64(slope) + np.float64(intercept)
    values[values < INT16.min] = AIR_HU
    if padded is not None:
        values[padded] = AIR_HU
    return values.astype(dtype)


def _padding(image: Image, stored: np.ndarray) -> np.ndarray | None:
    """Where the scanner padded, or None.

    A padding value that also means a tissue (0, with intercept 0, is water) marks nothing that can be told apart.
    """
    value = _whole(image.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _whole(image.get("PixelPaddingRangeLimit"))
    low, high = sorted(_as_stored(image, number) for number in (value, value if limit is None else limit))
    slope, intercept = rescale(image)
    flip = sum(_stored_range(image))
    meanings = [(flip - n if is_inverted(image) else n) * slope + intercept for n in (low, high)]
    if min(meanings) <= TISSUE_HU[1] and max(meanings) >= TISSUE_HU[0]:
        return None
    padded: np.ndarray = (stored >= low) & (stored <= high)
    return padded


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):  # absent; or of unknown representation, and so undecoded bytes
        return None


def _as_stored(image: Image, value: int) -> int:
    """A value in the pixels' own sign: many files give -2000 as 63536, or the other way round."""
    span = 1 << int(image.get("BitsAllocated", 16))
    if _signed(image):
        return value - span if value >= span // 2 else value
    return value + span if value < 0 else value


def _require_range(image: Image, stored: np.ndarray, padded: np.ndarray | None) -> None:
    """Values beyond the bits stored would be misread, or not fit the type that was chosen."""
    low, high = _stored_range(image)
    if stored.min() >= low and stored.max() <= high:
        return
    beyond = (stored < low) | (stored > high)
    if padded is not None:
        beyond &= ~padded
    if beyond.any():
        raise VolumeError(
            f"{image.name}: pixels from {stored.min()} to {stored.max()} do not fit its {image.get('BitsStored')} bits "
            "stored; the file is damaged or mislabelled"
        )


def _stored_range(image: Image) -> tuple[int, int]:
    allocated = int(image.get("BitsAllocated", 16))
    bits = min(int(image.get("BitsStored", allocated)), allocated)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if _signed(image) else (0, (1 << bits) - 1)


def _signed(image: Image) -> bool:
    return int(image.get("PixelRepresentation", 0)) == 1
