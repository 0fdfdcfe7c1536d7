"""Which mask is compared with which: two files, or two folders by the names of their files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.dataset import LABELS, reference_labels
from volseg.volumes.dataset.undescribed import INGESTED, LABEL_ENDS, MASK, labels_beside
from volseg.volumes.file_names import FILE_ENDINGS, ending_of, foreign_in, foreign_text, stem_of
from volseg.volumes.formats.registry import file_of
from volseg.volumes.label_files import label_table_of
from volseg.volumes.mask_folder import is_mask_folder

DICOM = ".dcm"
MASK_ENDINGS = (*FILE_ENDINGS, DICOM)
ENDS = (MASK, *LABEL_ENDS)
"""Of names that say what a file is, and not of which case."""


def pair_masks(
    prediction: str | Path, reference: str | Path, *, partial: bool = False
) -> list[tuple[Path, Path]]:  # fmt: skip
    """(prediction, reference) paths: of two files, or of two folders by name.

    In folders a prediction belongs to the reference of the same name, file ending aside. Where there is none,
    ``_mask``, ``_seg`` and the like and a channel suffix ``_0000`` at the end of either are passed over, and upper and
    lower case, so that volseg's default names fit nnU-Net's labelsTr. A folder of one mask a structure may be the
    reference of a file whose labels have these names. A data set stands for its labels; no image of it
    is needed.

    Raises VolumeError where a path is missing, one is a file and the other a folder, a prediction has no reference,
    or (unless `partial`) a reference has no prediction.
    """
    prediction, reference = Path(prediction), Path(reference)
    for path in (prediction, reference):
        if not file_of(path).exists():
            raise VolumeError(f"{path}: no such file or folder")
    folders = [path for path in (prediction, reference) if _is_folder(path)]
    one_of_cases = len(folders) == 1 and _is_folder_of_masks(folders[0])
    if one_of_cases and not _is_by_structure(reference, prediction):
        raise VolumeError(
            f"{prediction} and {reference}: give two masks or two folders of masks; a folder of one mask a structure "
            "is a reference where its files have the names of the prediction's labels"
        )
    if len(folders) < 2:
        return [(prediction, reference)]
    references = _references(reference)
    by_key = _by_key(references)
    pairs: dict[str, Path] = {}
    for stem, path in sorted(_predictions(prediction).items()):
        name = _reference_of(stem, references, by_key, path)
        if name is None:
            raise VolumeError(f"{path}: no reference of that name in {reference}")
        if name in pairs:
            raise VolumeError(f"{path} and {pairs[name]}: both belong to {references[name]}; keep one")
        pairs[name] = path
    missing = sorted(set(references) - set(pairs))
    if not pairs:
        raise VolumeError(_no_mask(prediction))
    if missing and not partial:
        raise VolumeError(
            f"{prediction}: no prediction for {len(missing)} of {len(references)} references, the first is "
            f"{missing[0]}; add them, or give --partial to evaluate what is there"
        )
    return [(path, references[name]) for name, path in sorted(pairs.items())]


def passed_over(path: Path) -> list[str]:
    """What is said of images or labels in a folder that are not compared, as volseg does not read them there."""
    labels = path / LABELS if (path / LABELS).is_dir() else path
    if not _is_folder(labels):
        return []
    foreign = [file for file in foreign_in(labels) if not file.name.lower().endswith(DICOM)]
    return [foreign_text(labels, foreign)] if foreign else []


def _is_folder(path: Path) -> bool:
    return path.is_dir() and path.suffix.lower() != ".zarr"


def _is_folder_of_masks(path: Path) -> bool:
    """A folder without any volume may be one with a DICOM file of labels."""
    return bool(_masks(path, FILE_ENDINGS)) or (path / LABELS).is_dir() or not _masks(path)


def _is_by_structure(reference: Path, prediction: Path) -> bool:
    """Whether the files of a folder are structures of one scan, not cases: the prediction has labels of their names."""
    if not is_mask_folder(reference) or not prediction.is_file():
        return False
    tables = [label_table_of(path) for path in (reference, prediction)]
    first, second = ({name.casefold() for name in (table.names if table is not None else ())} for table in tables)
    return bool(first & second)


def _no_mask(folder: Path) -> str:
    foreign = foreign_in(folder)
    more = f"; {foreign_text(folder, foreign)}" if foreign else ""
    return f"{folder}: holds no mask ({', '.join(MASK_ENDINGS)}){more}"


def _masks(folder: Path, endings: tuple[str, ...] = MASK_ENDINGS) -> dict[str, Path]:
    """Masks of a folder by name without ending."""
    there: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = stem_of(path.name, endings)
        if not ending_of(path.name, endings) or path.name.startswith(".") or stem.endswith("_probabilities"):
            continue
        if stem in there:
            raise VolumeError(f"{path} and {there[stem]}: two masks of one name; keep one")
        there[stem] = path
    return there


def _predictions(folder: Path) -> dict[str, Path]:
    """The masks of a folder: where `volseg segment` wrote them beside their scans, these alone."""
    there = _masks(folder)
    labels = {name for ends in labels_beside(there).values() for name in ends.values()}
    masks = {stem: path for stem, path in there.items() if stem.endswith(MASK)}
    scans = set(there) - set(masks) - labels
    return masks if scans and scans == {stem.removesuffix(MASK) for stem in masks} else there


def _references(folder: Path) -> dict[str, Path]:
    """The references of a folder: a data set's labels, labels that lie beside their images, or all of its masks."""
    listed = reference_labels(folder)
    if listed is not None:
        return listed
    there = _masks(folder)
    beside = {
        image: there[ends[INGESTED] if INGESTED in ends else next(iter(ends.values()))]
        for image, ends in labels_beside(there).items()
        if INGESTED in ends or len(ends) == 1
    }
    references = beside or there
    if not references:
        raise VolumeError(_no_mask(folder))
    return references


def _keys(stem: str) -> list[str]:
    """What a mask's case may be called, the likeliest first."""
    end = next((end for end in ENDS if stem.lower().endswith(end)), "")
    bare = stem[: len(stem) - len(end)]
    return list(dict.fromkeys((stem, bare, bare.removesuffix("_0000"))))


def _by_key(references: Mapping[str, Path]) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in references:
        for key in dict.fromkeys(key.casefold() for key in _keys(name)):
            by_key[key].append(name)
    return by_key


def _reference_of(
    stem: str, references: Mapping[str, Path], by_key: Mapping[str, list[str]], path: Path
) -> str | None:  # fmt: skip
    for key in _keys(stem):
        if key in references:
            return key
    for key in _keys(stem):
        names = by_key.get(key.casefold(), [])
        if len(names) > 1:
            raise VolumeError(f"{path}: belongs to {names[0]} or to {names[1]}; give it the name of one of them")
        if names:
            return names[0]
    return None
