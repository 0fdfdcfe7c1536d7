"""The library tifffile, imported without what it would print."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError
from volseg.volumes.formats.tiff import TIFF
from volseg.volumes.header_text import unreadable
from volseg.volumes.tiff.chain import check_chain


@cache
def tifffile() -> Any:
    """The module tifffile, whose log is silent: what it cannot read is told by an error."""
    import tifffile

    logging.getLogger("tifffile").disabled = True
    return tifffile


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A TIFF file, open. tifffile reports damage by a dozen types; all of them become a VolumeError."""
    try:
        library = tifffile()
    except ImportError:
        raise VolumeError(f"{path}: TIFF needs tifffile, which is not installed: pip install tifffile") from None
    try:
        with library.TiffFile(path) as file:
            check_chain(path)
            yield file
    except (VolumeError, OSError, AssertionError):
        raise
    except Exception as error:
        raise unreadable(path, TIFF, error) from error
