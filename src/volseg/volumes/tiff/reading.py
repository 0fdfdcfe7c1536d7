"""Reading TIFF, a box at a time: a folder of slices, or a file of many pages (BigTIFF, ImageJ's, OME-TIFF)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_few, first_line
from volseg.geometry import Box, Triple
from volseg.volumes.audit import Audit, Dropped
from volseg.volumes.checks import check_affine
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.placing import lps_affine, voxel_size
from volseg.volumes.stored import open_stored, stored_as
from volseg.volumes.tiff.library import opened, tifffile
from volseg.volumes.tiff.metadata import stated_affine, stated_size
from volseg.volumes.tiff.segments import check_page, read_part, tiling_of
from volseg.volumes.tiff.stack import Page, check_alike, gaps, pages_of, slice_files
from volseg.volumes.volume import Space, Volume

MINISWHITE = 0


def open_tiff(path: Path, options: OpenOptions, channel: int | None = None) -> Volume:
    """The volume in the TIFF file, or the folder of TIFF slices, at `path`. Only tags are read.

    channel  of a file of several, counted from 0; None: the file must hold one

    Integers stay what they are, single bits become 0 and 1, all else is read as float32. Where the voxels lie is what
    volseg wrote; else they are taken to run to left, posterior and superior.

    Raises VolumeError where there is no TIFF, where slices differ in size or type, and where nobody says how large the
    voxels are.
    """
    if path.is_dir():
        return _open_folder(path, options, channel)
    with opened(path) as file:
        pages = pages_of(file, path, channel)
        series = file.series[0]
        keyframe = series.keyframe
        check_page(keyframe, path)
        shape = (len(pages.numbers), int(keyframe.imagelength), int(keyframe.imagewidth))
        space, warnings = _space(file, path, shape, options)
        audit = _audit([path], [*pages.warnings, *warnings], keyframe)
        offset, raw = series.dataoffset, np.dtype(keyframe.dtype).newbyteorder(file.byteorder)
        if offset is not None and pages.channels == 1 and raw.kind in "iuf":
            stored = stored_as(data=path, shape=shape, offset=int(offset), raw=raw)
            return open_stored(stored, path, space, "TIFF", audit)
        return _PagedVolume(path, [Page(path, number) for number in pages.numbers], keyframe, space, audit)


def count_channels(path: Path) -> int:
    """How many channels the file holds. Raises VolumeError where it is no TIFF."""
    if path.is_dir():
        return 1
    with opened(path) as file:
        return pages_of(file, path, 0).channels


def _open_folder(path: Path, options: OpenOptions, channel: int | None) -> Volume:
    files, others = slice_files(path)
    if channel is not None:
        raise VolumeError(f"{path}: a folder of slices holds one channel")
    check_alike(files)
    with opened(files[0]) as file:
        keyframe = file.pages[0]
        shape = (len(files), int(keyframe.imagelength), int(keyframe.imagewidth))
        space, warnings = _space(file, path, shape, options)
        audit = _audit(files, [*gaps([file.name for file in files]), *warnings], keyframe, others)
        return _PagedVolume(path, [Page(file, 0) for file in files], keyframe, space, audit)


def _space(file: Any, path: Path, shape: Triple, options: OpenOptions) -> tuple[Space, list[str]]:
    affine = stated_affine(file)
    if affine is not None and options.voxel_size is None:
        check_affine(affine, path)
        return Space(shape, affine), []
    size, warnings = voxel_size(path, stated_size(file), options)
    return Space(shape, lps_affine(path, size)), warnings


def _audit(files: Sequence[Path], warnings: Sequence[str], page: Any, others: Sequence[Dropped] = ()) -> Audit:
    strange = [item.name for item in others if not item.name.startswith(".")]
    more = [f"left out, for they are no TIFF: {first_few(strange)}"] if strange else []
    if page.photometric == MINISWHITE:
        more.append("0 stands for white in it (MINISWHITE); values are read as they are stored")
    packing = getattr(page.compression, "name", str(page.compression)).lower()
    return Audit(
        used=tuple(file.name for file in files), inputs=tuple(files), dropped=tuple(others),
        warnings=(*warnings, *more), facts=(("stored as", f"{np.dtype(page.dtype).name}, compression {packing}"),),
    )  # fmt: skip


class _PagedVolume(Volume):
    """Slices that are pages of one file or of several, read by their strips or tiles. One thread at a time."""

    format = "TIFF"

    def __init__(self, path: Path, pages: Sequence[Page], keyframe: Any, space: Space, audit: Audit) -> None:
        self.path, self.space, self.audit, self._pages = path, space, audit, pages
        stored = np.dtype(keyframe.dtype)
        self.dtype = np.dtype({"f": np.float32, "b": np.uint8}.get(stored.kind, stored.newbyteorder("=")))
        self.whole_slices = keyframe.compression != 1 and tiling_of(keyframe).across == 1
        self._open: tuple[Path, Any] | None = None

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if not out.size:
            return out
        rows, columns = box.slices[1:]
        for index, page in enumerate(self._pages[box.start[0] : box.stop[0]]):
            try:
                with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which every reader checks for
                    out[index] = self._part(page, rows, columns)
            except (VolumeError, MemoryError):
                raise
            except Exception as error:  # a codec's, of any type
                self.close()
                where = f"slice {box.start[0] + index}"
                raise VolumeError(f"{page.path}: damaged in {where} ({first_line(error)}); copy it again") from error
        return out

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _part(self, page: Page, rows: slice, columns: slice) -> np.ndarray:
        if self._open is None or self._open[0] != page.path:
            self.close()
            self._open = page.path, tifffile().TiffFile(page.path)
        file = self._open[1]
        stored = file.series[0].pages[page.number]
        if stored is None:
            raise EOFError("the page is not there")
        return read_part(stored, stored.keyframe, file.filehandle, rows, columns)
