"""How much a hostile or damaged file may make volseg read, hold or count. Every such limit lives here.

Each is far above what scanners and archives write, so that reaching one means that something is wrong, and the message
may say so. For scale: a whole-body CT of 4000 slices of 512 x 512 is 2 GB; an enhanced header takes 1 to 5 KB a frame.
"""

from __future__ import annotations

MAX_FILES = 200_000
"""Files of one folder, or references of one DICOMDIR."""

MAX_HEADER_BYTES = 16 << 20
"""Bytes read for one file's header (elements passed over do not count)."""

MAX_SEQUENCE_ITEMS = 200_000
"""Items, at any depth, of one header's sequences; an enhanced file has about ten a frame. Each costs some 2 KB."""

MAX_SEQUENCE_VALUES = 1_000_000
"""Values beyond the first of one header's elements of several; an enhanced file has about twenty a frame."""

MAX_VALUE_BYTES = 1 << 16
"""One element of a header that is no sequence. Names and numbers take tens of bytes."""

MAX_HEADER_READS = 50_000
READS_PER_ITEM = 100
"""Reads of one header, and how many more each item of a sequence allows. An element takes one to three; a file of zeros
is read as elements of no length, one every 8 bytes, without end."""

MAX_FRAMES = 65_535
"""Frames of one multi-frame file."""

MAX_GROUPS = 256
"""Orientations, sizes and pixel spacings of one series; every further image would be compared with all of them."""

MAX_SLICE_PIXELS = 8192 * 8192
"""Rows x columns of one slice; decoders allocate them before they look at the data."""

MAX_ZIP_DIRECTORY_BYTES = 16 << 20
"""Size of a zip's list of members; about a hundred thousand of them, at 1 KB of memory each."""

MAX_ZIP_MEMBERS = 100_000
"""Members of one zip."""

MAX_MEMBER_BYTES = 1 << 30
"""One member of a zip, inflated, for it is held in memory while it is read."""

MAX_ZIP_BYTES = 32 << 30
"""All members of a zip, inflated."""

SUSPECT_BYTES = 64 << 20
MAX_RATIO = 200
"""A member, or a whole zip, that inflates to more than SUSPECT_BYTES and MAX_RATIO times its size is a bomb.

CT deflates to between a half and a fifth, an empty slice of 512 KB a thousandfold.
"""
