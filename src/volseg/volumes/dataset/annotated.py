"""Partly annotated cases: which labels somebody has looked for in each, as dataset.json says under ``annotated``.

    "annotated": {"case_3": ["liver"], "case_7": ["liver", "spleen"]}

A case that is not named there is annotated with all labels. The key is volseg's own; nnU-Net passes over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from volseg.errors import VolumeError, first_few
from volseg.volumes.dataset.case import Case, Dataset
from volseg.volumes.dataset.json_file import load_json
from volseg.volumes.file_names import DESCRIPTION

ANNOTATED = "annotated"


def with_annotated(dataset: Dataset, path: Path, faulty: Collection[str]) -> Dataset:
    """The data set with what its dataset.json says of its cases' labels.

    path    of its folder, or of dataset.json
    faulty  names of cases that lack a file

    Raises VolumeError where that names a case or a label that there is not, or is no list of names.
    """
    file = path if path.name == DESCRIPTION else path / DESCRIPTION
    written = load_json(file).get(ANNOTATED, {}) if file.is_file() else {}
    example = f'"{ANNOTATED}": {{"CASE": ["{dataset.scored[0] if dataset.scored else "liver"}"]}}'
    if not isinstance(written, dict):
        raise VolumeError(f"{file}: {ANNOTATED} must name cases with the labels looked for in each: {example}")
    known = {case.name for case in dataset.cases} | set(faulty)
    for name, labels in written.items():
        if name not in known:
            raise VolumeError(
                f"{file}: {ANNOTATED} names a case {name}, which is not there; correct it, or leave it out"
            )
        if not isinstance(labels, list) or not labels:
            raise VolumeError(f"{file}: {ANNOTATED}, case {name}: {labels!r} is no list of labels, such as {example}")
        strange = [label for label in labels if label not in dataset.scored]
        if strange:
            raise VolumeError(
                f"{file}: {ANNOTATED}, case {name}: {strange[0]!r} is none of {first_few(dataset.scored, 12)}"
            )
    if not written:
        return dataset
    return dataclasses.replace(dataset, cases=tuple(_case(case, written.get(case.name)) for case in dataset.cases))


def _case(case: Case, labels: list[str] | None) -> Case:
    return case if labels is None else dataclasses.replace(case, annotated=tuple(labels))
