"""The table of `ingestion_peers.py`: a row each for CT, labels and NIfTI, one row for all files refused alike.

Rows are grouped where volseg says the same of files that no CT reader should take (other modalities, screens, files
without an image) and of several DICOMDIRs; the peers' cells then count what became of the files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

START, STOP = "<!-- peers: begin -->", "<!-- peers: end -->"
COLUMNS = ("file", "volseg", "SimpleITK", "dcm2niix", "dicom2nifti", "volseg = dcm2niix")
CELL = 260  # characters
NAMED = 4  # files of a group that are named beside a peer's outcome
# In volseg's refusals: what stands in every one of those without a volume.
FRAME = re.compile(r"no CT volume of two or more slices in its (?:only file|\d+ files): |; give a whole CT series.*$")
WITHOUT_IMAGE = "without an image"
OWN_ROW = ("the only slice", "localizer", "damaged", "SEG", "RTSTRUCT", "CT Image Storage")  # CT or labels


def rows(outcomes: list[list[str]]) -> list[str]:
    """The table's lines; `outcomes` holds a list of cells for each case, in the order of `COLUMNS`."""
    groups: dict[str, list[list[str]]] = defaultdict(list)
    for cells in outcomes:
        cells = [" ".join(cell.split()) for cell in cells]
        cells[1] = re.sub(r"^(refused: )1 x (.*) \([^()]*\)$", r"\1\2", FRAME.sub("", cells[1]))
        groups[kind(cells)].append(cells)
    lines = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS))]
    in_order = sorted(groups.values(), key=lambda alike: len(alike) > 1)  # stable: what has a row of its own first
    lines += [" | ".join(one_row(alike)) for alike in in_order]
    return [f"| {line} |" for line in lines]


def kind(cells: list[str]) -> str:
    """What rows are put together by: a refusal's reason without the file; a row's own name where it stays alone."""
    name, said = cells[0], cells[1]
    if not name.startswith("pydicom") or not said.startswith("refused") or any(word in said for word in OWN_ROW):
        return name
    if ", without an image" in said:
        return WITHOUT_IMAGE
    reason = re.sub(r"refused: \d+ x ", "refused: ", re.sub(r" \([^()]*\)$", "", said))
    return f"DICOMDIR {reason}" if "DICOMDIR" in name else reason


def one_row(alike: list[list[str]]) -> list[str]:
    """The cells of one row for one file or several."""
    if len(alike) == 1:
        return [short(cell) for cell in alike[0]]
    names = [cells[0].removesuffix(".dcm") for cells in alike]
    ours = kind(alike[0]).removeprefix("DICOMDIR ")
    if ours == WITHOUT_IMAGE:
        sorts = (re.sub(r"^refused: |, without an image.*$", "", cells[1]) for cells in alike)
        ours = f"refused: without an image ({'; '.join(dict.fromkeys(sorts))})"
    columns = [counted(names, [cells[at] for cells in alike]) for at in range(2, len(COLUMNS))]
    return [by_package(names), short(ours), *columns]


def by_package(names: list[str]) -> str:
    """``pydicom: a, b; pydicom-data: c``, and how many they are."""
    packages: dict[str, list[str]] = defaultdict(list)
    for name in names:
        package, _, inside = name.partition(" ")
        packages[package].append(inside)
    listed = "; ".join(f"{package}: {', '.join(inside)}" for package, inside in packages.items())
    return f"{len(names)} cases: {listed}"


def counted(names: list[str], cells: list[str]) -> str:
    """How many files came to each end, the rarer ones by name."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name, cell in zip(names, cells, strict=True):
        ends[end(cell)].append(name.split(" ", 1)[-1])
    if len(ends) == 1:
        return f"{next(iter(ends))}" + (f": all {len(names)}" if next(iter(ends)) else "")
    ordered = sorted(ends.items(), key=lambda pair: -len(pair[1]))
    parts = []
    for text, files in ordered:
        named = f" ({', '.join(files)})" if len(files) <= NAMED and files is not ordered[0][1] else ""
        parts.append(f"{text}: {len(files)}{named}")
    return "; ".join(parts)


def end(cell: str) -> str:
    """A peer's cell without what differs from file to file."""
    if cell.startswith("**"):
        return short(re.sub(r"\w+\.dcm", "FILE", cell))
    if cell.startswith("nothing"):
        return "nothing"
    if re.match(r"\d+x", cell):
        return "an image" + (" with a warning" if "says:" in cell else "")
    return cell


def short(text: str) -> str:
    """Fit for a cell: no bars, UIDs cut to their ends, no addresses of memory."""
    text = re.sub(r"\d[\d.]{28,}\d", lambda uid: f"...{uid[0][-6:]}", text.replace("|", "/"))
    text = re.sub(r"\w+\(0x[0-9a-f]+\): ", "", text)
    return text if len(text) <= CELL else text[: CELL - 10].rstrip() + " [...]"


def write(table: str, page: Path) -> None:
    """Replace what stands between the markers of a page."""
    before, rest = page.read_text().split(START)
    page.write_text(f"{before}{START}\n{table}\n{STOP}{rest.split(STOP)[1]}")
