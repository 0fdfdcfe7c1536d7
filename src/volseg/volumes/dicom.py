"""Reading a folder of DICOM slices: headers when it is opened, pixels only of the slices that a box meets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.checks import exact_dtype
from volseg.volumes.dicom_geometry import place_slices
from volseg.volumes.dicom_series import Slice, find_series
from volseg.volumes.volume import Space, Volume

AIR_HU = -1024
TISSUE_HU = (-1000, 3071)


def open_dicom(folder: Path) -> Volume:
    """The one CT series in `folder`, as a volume in Hounsfield units.

    Values are int16 (else int32) where slopes and intercepts are whole numbers and the stored bits fit, else float32.
    Pixels that the scanner marked as padding, outside its round field of view, are read as air, -1024 HU.

    Raises VolumeError, naming what is wrong, unless the folder holds one series of CT slices that lie evenly along
    their normal and whose transfer syntax can be decoded (see `dicom_series` and `dicom_geometry`).
    """
    slices, space = place_slices(folder, find_series(folder))
    for syntax in sorted({image.transfer_syntax for image in slices}):
        _require_decoder(folder, syntax)
    return _DicomVolume(folder, slices, space)


class _DicomVolume(Volume):
    format = "DICOM"
    whole_slices = True

    def __init__(self, path: Path, slices: list[Slice], space: Space) -> None:
        self.path, self.space, self._slices = path, space, slices
        dtypes = {_dtype(image) for image in slices}
        self.dtype = np.dtype(np.float32) if np.dtype(np.float32) in dtypes else max(dtypes, key=lambda t: t.itemsize)

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if out.size:
            for index in range(box.shape[0]):
                out[index] = self._hounsfield(self._slices[box.start[0] + index])[box.slices[1:]]
        return out

    def _hounsfield(self, image: Slice) -> np.ndarray:
        stored = _decode(image, self.shape[1:])
        slope, intercept = _rescale(image)
        values: np.ndarray
        if self.dtype.kind == "i":
            values = stored.astype(np.int64) * int(slope) + int(intercept)
            limits = np.iinfo(self.dtype)
            if values.min() < limits.min or values.max() > limits.max:
                bits = image.get("BitsStored")
                raise VolumeError(
                    f"{image.path}: pixels from {stored.min()} to {stored.max()} do not fit its {bits} bits stored; "
                    "the file is damaged or mislabelled"
                )
        else:
            values = stored * np.float64(slope) + np.float64(intercept)
        padded = _padding(image, stored, slope, intercept)
        if padded is not None:
            values[padded] = AIR_HU
        return values


def _decode(image: Slice, shape: tuple[int, ...]) -> np.ndarray:
    """Stored values [rows, columns]."""
    from pydicom import dcmread

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities that do not touch the pixels
            dataset = dcmread(image.path, force=True)
            if "TransferSyntaxUID" not in dataset.file_meta:
                dataset.file_meta.TransferSyntaxUID = image.transfer_syntax
            pixels: np.ndarray = dataset.pixel_array
    except Exception as error:  # each decoder has its own errors
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise VolumeError(f"{image.path}: pixels cannot be decoded ({lines[0]}); copy the file again") from error
    if pixels.shape != shape:
        raise VolumeError(f"{image.path}: pixels of shape {pixels.shape}, its header promises {shape}")
    return pixels


def _padding(image: Slice, stored: np.ndarray, slope: float, intercept: float) -> np.ndarray | None:
    """Where the scanner padded, or None.

    A padding value that also means a tissue (0, with intercept 0, is water) marks nothing that can be told apart.
    """
    value = image.get("PixelPaddingValue")
    if value is None or isinstance(value, bytes):
        return None
    other = image.get("PixelPaddingRangeLimit", value)
    low, high = sorted(_as_stored(image, int(v)) for v in (value, value if isinstance(other, bytes) else other))
    if any(TISSUE_HU[0] <= bound * slope + intercept <= TISSUE_HU[1] for bound in (low, high)):
        return None
    padded: np.ndarray = (stored >= low) & (stored <= high)
    return padded


def _as_stored(image: Slice, value: int) -> int:
    """A value in the pixels' own sign: many files give -2000 as 63536, or the other way round."""
    span = 1 << int(image.get("BitsAllocated", 16))
    if _signed(image):
        return value - span if value >= span // 2 else value
    return value + span if value < 0 else value


def _signed(image: Slice) -> bool:
    return int(image.get("PixelRepresentation", 0)) == 1


def _rescale(image: Slice) -> tuple[float, float]:
    slope, intercept = image.get("RescaleSlope"), image.get("RescaleIntercept")
    if slope is None or intercept is None:
        raise VolumeError(f"{image.path}: no RescaleSlope and RescaleIntercept, so its values are in no known unit")
    if not (np.isfinite(float(slope)) and np.isfinite(float(intercept)) and float(slope) != 0):
        raise VolumeError(f"{image.path}: RescaleSlope {slope}, RescaleIntercept {intercept} give no Hounsfield units")
    return float(slope), float(intercept)


def _dtype(image: Slice) -> np.dtype[Any]:
    allocated = int(image.get("BitsAllocated", 16))
    bits = min(int(image.get("BitsStored", allocated)), allocated)
    bounds = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if _signed(image) else (0, (1 << bits) - 1)
    return exact_dtype(bounds, *_rescale(image))


def _require_decoder(folder: Path, syntax: str) -> None:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    uid = UID(syntax)
    try:
        available = bool(get_decoder(uid).is_available)
    except NotImplementedError:
        available = False
    if not available:
        raise VolumeError(
            f"{folder}: transfer syntax {uid.name} ({uid}) has no decoder here; store the series uncompressed, for "
            "instance with gdcmconv --raw"
        )
