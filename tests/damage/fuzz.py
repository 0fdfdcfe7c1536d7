"""Feeds damaged files to volseg's readers, and tells what was no volume and no VolsegError.

    python tests/damage/fuzz.py [--cases 500] [--seed 0] [--only FAMILY] [--case NUMBER]

Run by `tests/volumes/test_fuzz.py` in a process of its own. Prints JSON: the number of cases by outcome, the slowest,
the growth of the peak memory, and each failure with the family and number that make it again.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from damage.dicom import ct_slices
from damage.families import FAMILIES, LABELS
from volseg.errors import VolsegError
from volseg.geometry import Box
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.mask_source import open_labels
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Volume

SECONDS = 10.0  # for one case; on an idle machine each takes milliseconds
MEMORY_BYTES = 256 * 2**20  # growth of the peak resident memory over all cases; no file is larger than 1.1 MB
ADDRESS_BYTES = 8 * 2**30  # address space beyond what the libraries take: asking for more raises MemoryError, a failure
SLAB_VOXELS = 2**20
EVERY = FAMILIES | LABELS
OPTIONS = (DicomOptions(), DicomOptions(fix_tilt=True, resample_gaps=True), DicomOptions(series="1"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(EVERY))
    parser.add_argument("--case", type=int, help="this one case, its error raised")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    families = [given.only] if given.only else list(EVERY)
    if given.case is not None:
        print(run_case(families[0], given.seed, given.case))
        return
    print(json.dumps(run(families, given.seed, given.cases)))


def run(families: list[str], seed: int, cases: int) -> dict[str, Any]:
    """All cases, the families in turn."""
    for family in families:  # what is loaded and cached once is not counted
        run_case(family, seed, 10**6)
    before = peak_bytes()
    limit = address_bytes() + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[int, str] = (0, "")
    for number in range(cases):
        family = families[number % len(families)]
        name, start, memory = f"{family} {number}", time.perf_counter(), peak_bytes()
        print(name, file=sys.stderr, flush=True)  # named last if the process dies of it
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            counts[f"{family} {run_case(family, seed, number)}"] += 1
        except Exception as error:  # MemoryError too
            frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            text = f"{type(error).__name__}: {str(error)[:200]}"
            failures.append({"case": name, "error": text, "at": [f for f in frames if "fuzz.py" not in f][-6:]})
        finally:
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, (time.perf_counter() - start, name))
        largest = max(largest, (peak_bytes() - memory, name))
    grown = peak_bytes() - before
    found = {"cases": cases, "outcomes": dict(counts), "slowest": slowest, "memory": grown, "largest": largest}
    return found | {"failures": failures}


def run_case(family: str, seed: int, number: int) -> str:
    """ "volume" or "refused"; any other exception comes out."""
    rng = np.random.default_rng([seed, list(EVERY).index(family), number])
    folder = Path(tempfile.mkdtemp(prefix="volseg-fuzz-"))
    try:
        path = EVERY[family](rng, folder)
        if family in LABELS:
            volume, _ = open_labels(path, sound_image(folder), resample=bool(rng.random() < 0.2))
        else:
            dicom = path.suffix in ("", ".zip") and family != "tiff_bytes"
            volume = open_volume(path, OpenOptions(OPTIONS[int(rng.choice([0, 0, 1, 2])) if dicom else 0]))
        read(volume)
    except VolsegError as error:
        check_message(str(error))
        return "refused"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return "volume"


def sound_image(folder: Path) -> Volume:
    """The series that damaged labels are meant for."""
    series = folder / "series"
    series.mkdir()
    for number, data in enumerate(ct_slices()):
        (series / f"{number}.dcm").write_bytes(data)
    return open_volume(series)


def read(volume: Volume) -> None:
    """Read a volume as `ingest` does, slab by slab; of one that is large only its two ends."""
    depth, height, width = volume.shape
    step, rows = max(1, SLAB_VOXELS // (height * width)), min(height, max(1, SLAB_VOXELS // width))
    starts = range(0, depth, step) if depth <= 8 * step else (0, depth - 1)
    for start in starts:
        box = Box((start, 0, 0), (min(depth, start + step), rows, min(width, SLAB_VOXELS)))
        voxels = volume.read(box)
        assert voxels.shape == box.shape
        assert voxels.dtype == volume.dtype
    assert volume.space.affine.shape == (4, 4)
    assert np.isfinite(volume.space.affine).all()
    volume.close()


def check_message(text: str) -> None:
    """One or two lines that a terminal shows whole, and no talk of memory that was asked for in vain."""
    lines = text.splitlines()
    assert len(text.strip()) > 10, f"an empty message: {text!r}"
    assert "MemoryError" not in text
    assert "Unable to allocate" not in text
    odd = {character for line in lines for character in line if not character.isprintable()}
    assert not odd, f"characters that a terminal may obey, {odd}: {text[:300]!r}"
    assert len(text) < 3000, f"a message of {len(text)} characters: {text[:300]}"


def address_bytes() -> int:
    """Address space of this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
