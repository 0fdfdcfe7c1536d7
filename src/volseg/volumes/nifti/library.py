"""The library nibabel, imported without what it takes along for DICOM."""

from __future__ import annotations

from functools import cache
from typing import Any

from volseg.deferred import hidden


@cache
def nibabel() -> Any:
    """The module nibabel.

    It imports pydicom, for NIfTI files that carry a DICOM header, of which volseg reads nothing; and pydicom imports
    all libraries that decode pixels, which takes longer than nibabel itself. So volseg's own programs do without.
    """
    with hidden("pydicom"):
        import nibabel

    return nibabel
