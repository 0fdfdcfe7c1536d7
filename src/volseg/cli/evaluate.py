"""``volseg evaluate``: how well masks agree with their references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volseg.cli.job import Job, job
from volseg.cli.options import Debug, JsonOutput, NoProgress, Overwrite, Quiet
from volseg.errors import VolumeError

if TYPE_CHECKING:
    from volseg.segmentation.evaluation import CaseResult


def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="A mask, or a folder of masks.")],
    reference: Annotated[
        Path, typer.Argument(metavar="REF", help="The true mask, a folder such as labelsTr, or a data set.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help='Label names: a dataset.json, or JSON such as {"liver": 1}. Without: the labels found.'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write nnU-Net's summary.json here.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Allow references that have no prediction.")] = False,
    json_output: JsonOutput = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Compare masks with reference masks on the same grid: Dice, IoU and volumes for each label.

    In folders masks are paired by name. Cases are shared out over ranks, where there are several.
    """
    with job(quiet, no_progress, debug) as work:
        from volseg.segmentation.evaluation import (
            foreground_labels,
            pair_masks,
            summarise,
            summary_text,
            write_summary,
        )
        from volseg.volumes.dataset import DESCRIPTION, read_label_names
        from volseg.volumes.writing import check_small_output

        with work.communicator.together():
            if output is not None and work.communicator.is_root:
                check_small_output(output, overwrite)
        if labels is None and (reference / DESCRIPTION).is_file():
            labels = reference / DESCRIPTION
        given = read_label_names(labels) if labels is not None else None
        results = _compare_all(pair_masks(prediction, reference, partial=partial), work)
        found = foreground_labels(results)
        wanted = given if given is not None else {f"label {value}": value for value in found}
        values = sorted(value for value in wanted.values() if value != 0)
        if not values:
            raise VolumeError(f"{prediction} and {reference}: both masks are empty, there is no label to compare")
        _warn_of_others(work, set(found) - set(values))
        summary = summarise(results, values)
        if output is not None and work.communicator.is_root:
            write_summary(output, summary)
        if json_output:
            work.print(summary_text(summary).rstrip())
            return
        names = {value: name for name, value in wanted.items()}
        work.print(_label_table(results, summary, names, values))
        if len(results) > 1:
            work.print(_case_table(results, values))


def _compare_all(pairs: list[tuple[Path, Path]], work: Job) -> list[CaseResult]:
    """Every pair's result, on every rank; rank r compares pairs r, r + size, ..."""
    from volseg.events import Progress
    from volseg.segmentation.evaluation import compare
    from volseg.volumes.reading import open_volume

    communicator = work.communicator
    mine: dict[int, CaseResult] = {}
    error: Exception | None = None
    try:
        for number in range(communicator.rank, len(pairs), communicator.size):
            mine[number] = compare(open_volume(pairs[number][0]), open_volume(pairs[number][1]))
            work.listen(Progress("evaluate", min(number + communicator.size, len(pairs)), len(pairs), "cases"))
    except Exception as caught:
        error = caught
    communicator.raise_together(error)
    merged: dict[int, CaseResult] = {}
    for part in communicator.gather_all(mine):
        merged |= part
    return [merged[number] for number in range(len(pairs))]


def _warn_of_others(work: Job, others: set[int]) -> None:
    if others:
        from volseg.events import Caution

        shown = ", ".join(str(value) for value in sorted(others)[:8])
        work.listen(Caution(f"the masks also hold labels that --labels does not name, left out here: {shown}"))


def _label_table(results: list[CaseResult], summary: dict[str, Any], names: dict[int, str], values: list[int]) -> Any:
    """One row for each label, means over the cases; the last row is the mean over labels."""
    from volseg.cli.render import table

    def mean_ml(key: str, value: int) -> float:
        return sum(float(case.metrics(value)[key]) * case.voxel_ml for case in results) / len(results)

    rows = []
    for value in values:
        mean = summary["mean"][str(value)]
        predicted, true = mean_ml("n_pred", value), mean_ml("n_ref", value)
        rows.append(
            [
                names.get(value, str(value)),
                value,
                _score(mean["Dice"]),
                _score(mean["IoU"]),
                _ml(predicted),
                _ml(true),
                f"{mean['n_pred']:,.0f}",
                f"{mean['n_ref']:,.0f}",
            ]
        )
    overall = summary["foreground_mean"]
    rows.append(["mean", "", _score(overall["Dice"]), _score(overall["IoU"]), "", "", "", ""])
    title = str(results[0].prediction) if len(results) == 1 else f"mean of {len(results)} cases"
    columns = ["label", "value", "Dice", "IoU", "ml", "reference ml", "voxels", "reference voxels"]
    drawn = table(title, columns, rows)
    drawn.rows[-2].end_section = True
    return drawn


def _case_table(results: list[CaseResult], values: list[int]) -> Any:
    from volseg.cli.render import table
    from volseg.segmentation.evaluation import summarise

    rows = []
    for case in results:
        mean = summarise([case], values)["foreground_mean"]
        rows.append([case.prediction.name, _score(mean["Dice"]), _score(mean["IoU"])])
    return table("by case", ["case", "Dice", "IoU"], rows)


def _score(value: float) -> str:
    return f"{value:.4f}" if value == value else "-"


def _ml(value: float) -> str:
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
