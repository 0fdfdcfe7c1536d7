"""`evaluate`: masks or folders of them against their references, the cases shared out over the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from volseg.config import NO_MAP, LabelsConfig
from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Progress, ignore
from volseg.segmentation.evaluation import (
    CaseResult,
    Scored,
    compare,
    foreground_labels,
    summarise,
    write_summary,
)
from volseg.segmentation.mask_pair import open_pair
from volseg.segmentation.pairing import pair_masks, passed_over
from volseg.volumes.dataset import description_near, read_ignored_value, read_label_names, read_regions
from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_map import LabelMap, MappedLabels, label_map
from volseg.volumes.mask_folder import is_mask_folder
from volseg.volumes.mask_values import together
from volseg.volumes.reading import format_of
from volseg.volumes.regions import Region
from volseg.volumes.writing import check_small_output


@dataclass(frozen=True)
class EvaluationJob:
    """What to compare.

    prediction, reference  a mask each, or a folder of masks each, which are paired by name; or a data set as reference
    labels   names of the labels: a dataset.json, or JSON such as {"liver": 1}; None: those of the data set that the
             reference (or else the prediction) belongs to, or what is found
    output   also nnU-Net's summary.json here
    partial  whether references may have no prediction
    label_map  what becomes of the references' labels, which a prediction has already; empty: nothing
    """

    prediction: Path
    reference: Path
    labels: Path | None = None
    output: Path | None = None
    partial: bool = False
    overwrite: bool = False
    label_map: LabelsConfig = NO_MAP


@dataclass(frozen=True)
class Evaluation:
    """How well masks agree with their references.

    cases    by pair of masks
    labels   name -> value of what was compared, by value; of a region its values, in the regions' order
    summary  the content of nnU-Net's summary.json
    """

    cases: tuple[CaseResult, ...]
    labels: dict[str, Scored]
    summary: dict[str, Any]

    @property
    def values(self) -> list[Scored]:
        """Of the foreground labels in their order, or of the regions."""
        return [value for value in self.labels.values() if value != 0]

    @property
    def dice(self) -> dict[str, float]:
        """Mean over the cases, by label name; NaN where a label is nowhere."""
        mean = self.summary["mean"]
        return {name: float(mean[str(value)]["Dice"]) for name, value in self.labels.items() if value != 0}


def evaluate(job: EvaluationJob, communicator: Communicator, listen: Listener = ignore) -> Evaluation:
    """Compare all pairs; the root writes the summary. Collective.

    Raises VolumeError, on all ranks, where masks cannot be paired, do not lie on one grid, or hold no label at all.
    """
    output = job.output
    if output is not None:
        communicator.on_root(partial(check_small_output, output, job.overwrite))
    given, ignore, regions = _names(job, listen)
    change = None
    if job.label_map:
        change = _label_map(job, given, ignore)
        given, ignore, regions = dict(change.labels), change.ignore, ()
    pairs = pair_masks(job.prediction, job.reference, partial=job.partial)
    for folder in (job.prediction, job.reference):
        for text in passed_over(folder):
            listen(Caution(text))
    results = _compare_all(pairs, given, ignore, change, communicator, listen)
    for text in dict.fromkeys(note for result in results for note in result.notes):
        listen(Caution(text))
    same = sum(prediction.samefile(reference) for prediction, reference in pairs)
    if same:
        listen(Caution(f"{same} of {len(pairs)} masks are compared with themselves, which says nothing"))
    found = foreground_labels(results)
    known = given if given is not None else {f"label {value}": value for value in found}
    labels: dict[str, Scored] = dict(sorted(known.items(), key=lambda label: label[1]))
    if regions:
        labels = {region.name: region.values if len(region.values) > 1 else region.values[0] for region in regions}
    values = [value for value in labels.values() if value != 0]
    if not values:
        raise VolumeError(f"{job.prediction} and {job.reference}: both masks are empty, there is no label to compare")
    others = sorted(set(found) - set(known.values()))
    if others:
        shown = ", ".join(str(value) for value in others[:8])
        listen(Caution(f"the masks also hold labels that --labels does not name, left out here: {shown}"))
    summary = summarise(results, values)
    if output is not None:
        communicator.on_root(partial(write_summary, output, summary))
    return Evaluation(tuple(results), labels, summary)


Named = tuple[dict[str, int] | None, int | None, tuple[Region, ...]]


def _names(job: EvaluationJob, listen: Listener) -> Named:
    """Names and values of the labels, nnU-Net's value of what is ignored, None each where nothing says so; regions."""
    if job.labels is not None:
        return _named(job.labels, bool(job.label_map))
    path = description_near(job.reference) or description_near(job.prediction)
    if path is None:
        table = label_table_of(job.prediction) if is_mask_folder(job.reference) and job.prediction.is_file() else None
        return (dict(table.names) if table is not None else None), None, ()
    try:
        return _named(path, bool(job.label_map))
    except VolumeError as error:  # masks can be compared all the same
        listen(Caution(f"{error} (here the labels found are compared; --labels FILE names them)"))
        return None, None, ()


def _named(path: Path, gaps: bool) -> Named:
    return read_label_names(path, gaps), read_ignored_value(path), () if gaps else read_regions(path)


def _label_map(job: EvaluationJob, names: Mapping[str, int] | None, ignore: int | None) -> LabelMap:
    """What becomes of the references' labels; where nothing names them, they have the values that the map names."""
    if format_of(job.reference) is DICOM:
        raise VolumeError(
            f"{job.reference}: labels of DICOM files go by their names, not by a map of values; bring them in first: "
            f"volseg ingest SCAN --labels {job.reference} -o NEW.nii.gz"
        )
    if names is None:
        values = [value for _, several in job.label_map.rows for value in several if isinstance(value, int)]
        names = {"background": 0} | {f"label {value}": value for value in values}
    return label_map(job.label_map, names, ignore, job.reference)


def _compare_all(
    pairs: Sequence[tuple[Path, Path]], names: Mapping[str, int] | None, ignore: int | None, change: LabelMap | None,
    communicator: Communicator, listen: Listener,
) -> list[CaseResult]:  # fmt: skip
    """Every pair's result, on every rank; rank r compares pairs r, r + size, ..."""
    mine: dict[int, CaseResult] = {}
    with communicator.together():
        for number in range(communicator.rank, len(pairs), communicator.size):
            remarks: set[str] = set()
            prediction, reference, notes = open_pair(*pairs[number], names, remarks.add)
            if change is not None:
                reference = MappedLabels(reference, change)
            mine[number] = compare(prediction, reference, ignore)
            mine[number] = replace(mine[number], notes=(*notes, *together(remarks)))
            listen(Progress("evaluate", min(number + communicator.size, len(pairs)), len(pairs), "cases"))
    merged: dict[int, CaseResult] = {}
    for part in communicator.gather_all(mine):
        merged |= part
    return [merged[number] for number in range(len(pairs))]
