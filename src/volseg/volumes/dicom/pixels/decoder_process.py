"""Decoders that a damaged codestream may take down, in a process of their own.

GDCM, the one permissively licensed decoder of JPEG Lossless and of JPEG Extended of 12 bits, then ends the whole
process (an uncaught C++ exception); CharLS, by pyjpegls, may not come back from a cut-off JPEG-LS. The process is
started with the first frame that needs it, serves frame after frame, and ends with its parent, whose closed pipe it
sees. `main` is what runs in it.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from typing import Any, BinaryIO

SECONDS = 10.0
"""More than any frame takes; a decoder that does not come back is stopped."""

JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
DAMAGED = "the codestream is damaged"
_LENGTH = struct.Struct("<Q")


class DecoderProcess:
    """Decodes frames; one that kills the process, or keeps it too long, is an error, and the next starts it again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, **description: Any) -> bytes:
        """The pixels of one frame, of the bits allocated. `description` is what `_decode` takes.

        Raises ValueError where it cannot be decoded.
        """
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-P", "-m", __name__]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        watchdog = threading.Timer(SECONDS, process.kill)
        watchdog.start()
        try:
            _send(process.stdin, json.dumps(description).encode())
            _send(process.stdin, data)
            decoded = _receive(process.stdout)
        except OSError:  # it ended while it was written to
            decoded = None
        except BaseException:  # such as Ctrl-C: its answer to this frame must not be taken for that to the next
            self.close()
            raise
        finally:
            watchdog.cancel()
        if decoded is None:
            self.close()
        if not decoded:
            raise ValueError(DAMAGED)
        return decoded

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def main() -> None:
    """Answer each pair of messages (a description in JSON, a codestream) by its pixels; by nothing where that fails."""
    while (description := _receive(sys.stdin.buffer)) is not None:
        data = _receive(sys.stdin.buffer)
        if data is None:
            return
        if hasattr(signal, "alarm"):  # for a decoder that hangs and whose parent, which would stop it, was killed
            signal.alarm(round(2 * SECONDS))
        _send(sys.stdout.buffer, _decode(data, **json.loads(description)))
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _decode(data: bytes, syntax: str, **description: Any) -> bytes:
    if syntax in JPEG_LS:
        return _by_charls(data, description["allocated"], description["signed"])
    return _by_gdcm(data, syntax=syntax, **description)


def _by_charls(data: bytes, allocated: int, signed: int) -> bytes:
    """JPEG-LS does not say whether its values have a sign; the header does."""
    import jpeg_ls  # type: ignore[import-untyped,unused-ignore]
    import numpy as np

    try:
        buffer, found = jpeg_ls.decode_pixel_data(data)
    except Exception:  # damaged: it has several types for that
        return b""
    size = 1 if found["bits_per_sample"] <= 8 else 2
    values = np.frombuffer(buffer, f"{'i' if signed else 'u'}{size}")
    if signed:
        shift = 8 * size - int(found["bits_per_sample"])
        values = (values << shift) >> shift
    return values.astype(f"{'i' if signed else 'u'}{allocated // 8}").tobytes()


def _by_gdcm(
    data: bytes, *, syntax: str, meaning: str, rows: int, columns: int, allocated: int, stored: int, signed: int
) -> bytes:
    import gdcm

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(data)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((columns, rows, 1))
    image.SetDataElement(element)
    interpretation = gdcm.PhotometricInterpretation.GetPIType(meaning)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(interpretation))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, allocated, stored, stored - 1, signed))
    decoded = image.GetBuffer()
    return b"" if decoded is None else decoded.encode("utf-8", "surrogateescape")  # GDCM hands bytes out as text


def _send(pipe: Any, message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> bytes | None:
    """One message; None where the other end is gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    message: bytes = pipe.read(length)
    return message if len(message) == length else None


if __name__ == "__main__":
    main()
