"""``volseg evaluate``: how well masks agree with their references."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volseg.cli.job import job
from volseg.cli.options import Debug, JsonOutput, LabelMap, NoProgress, Overwrite, Quiet

if TYPE_CHECKING:
    from volseg.segmentation.evaluation import CaseResult, Scored


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
    label_map: LabelMap = None,
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
        from volseg.config import read_label_map
        from volseg.segmentation.comparison import EvaluationJob
        from volseg.segmentation.comparison import evaluate as evaluate_masks
        from volseg.segmentation.evaluation import summary_text

        asked = EvaluationJob(
            prediction=prediction,
            reference=reference,
            labels=labels,
            output=output,
            partial=partial,
            overwrite=overwrite,
            label_map=read_label_map(label_map or ()),
        )
        found = evaluate_masks(asked, work.communicator, work.listen)
        show = work.print if output is None else work.tell
        if json_output:
            show(summary_text(found.summary).rstrip())
            return
        names = {value: name for name, value in found.labels.items()}
        show(_label_table(list(found.cases), found.summary, names, found.values))
        if len(found.cases) > 1:
            show(_case_table(list(found.cases), found.values))


def _label_table(
    results: list[CaseResult], summary: dict[str, Any], names: dict[Scored, str], values: list[Scored]
) -> Any:
    """One row for each label, means over the cases; the last row is the mean over labels."""
    from volseg.cli.render import table

    def mean_ml(key: str, value: Scored) -> float:
        return sum(float(case.metrics(value)[key]) * case.voxel_ml for case in results) / len(results)

    rows = []
    for value in values:
        mean = summary["mean"][str(value)]
        predicted, true = mean_ml("n_pred", value), mean_ml("n_ref", value)
        rows.append(
            [
                names.get(value, str(value)),
                value if isinstance(value, int) else " ".join(map(str, value)),
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


def _case_table(results: list[CaseResult], values: list[Scored]) -> Any:
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
    from volseg.cli.render import millilitres

    return millilitres(value, 2 if value < 100 else 0)
