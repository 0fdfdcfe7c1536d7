"""``volseg check``: verify every case of a data set, and show what it holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volseg.cli.job import job
from volseg.cli.options import Channels, DatasetPath, Debug, JsonOutput, LabelMap, LabelNames, Labels, NoProgress, Quiet

if TYPE_CHECKING:
    from volseg.volumes.dataset import Fault
    from volseg.volumes.dataset.check import CheckReport
    from volseg.volumes.fingerprint import Fingerprint


def check(
    dataset: DatasetPath = Path("ellipsoids"),
    labels: Labels = None,
    label_names: LabelNames = None,
    channels: Channels = None,
    label_map: LabelMap = None,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Cases whose labels are background alone are no fault.")
    ] = False,
    json_output: JsonOutput = False,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
    debug: Debug = False,
) -> None:
    """Verify every case of a data set: files, grids, labels, values. All faults in one table; exit code 2 if any.

    Cases are shared out over ranks, where there are several, and read slab by slab.
    """
    with job(quiet, no_progress, debug) as work:
        from json import dumps

        from volseg.api import check as check_set
        from volseg.sizes import parse_names

        report = check_set(
            dataset, labels=labels, label_names=label_names, channels=parse_names(channels), label_map=label_map or (),
            allow_empty=allow_empty, communicator=work.communicator, listen=work.listen,
        )  # fmt: skip
        if json_output:
            work.print(dumps(report.as_json(), indent=2))
        else:
            _show(report, work.print, quiet)
        if not report.is_sound:
            raise typer.Exit(2)


def _show(report: CheckReport, show: Any, quiet: bool) -> None:
    """All of it; where it is to be quiet, the faults alone."""
    fingerprint = report.fingerprint
    if fingerprint.cases and not quiet:
        show(_set_table(report))
        show(_class_table(fingerprint))
        show(_channel_table(fingerprint))
    if report.faults:
        if sys.stdout.isatty():
            show(_fault_table(report.faults))
        else:  # one line each, to be searched for
            for fault in report.faults:
                show(f"{_severity(fault)}: {fault.case or 'data set'}: {fault.kind}: {fault.message}")
    if quiet:
        return
    serious, others = (sum(fault.serious == is_serious for fault in report.faults) for is_serious in (True, False))
    verdict = f"{serious} fault{'s' if serious != 1 else ''}" if serious else "no faults"
    warnings = f", {others} warning{'s' if others != 1 else ''}" if others else ""
    cases = {case.name for case in report.dataset.cases} | {fault.case for fault in report.faults if fault.case}
    show(f"{report.dataset.folder}: {len(cases)} case{'s' if len(cases) != 1 else ''}, {verdict}{warnings}")


def _severity(fault: Fault) -> str:
    return "fault" if fault.serious else "warning"


def _fault_table(faults: Sequence[Fault]) -> Any:
    from volseg.cli.render import table

    rows = [(fault.case or "data set", _severity(fault), fault.kind, fault.message) for fault in faults]
    return table("faults", ["case", "", "what", "where"], rows, text_columns=4)


def _set_table(report: CheckReport) -> Any:
    from volseg.cli.render import table

    fingerprint = report.fingerprint
    cases = len(fingerprint.cases)
    rows = []
    for title, values in (
        ("voxels D x H x W", [case.shape for case in fingerprint.cases]),
        ("spacing mm", [case.spacing for case in fingerprint.cases]),
    ):
        smallest, median, largest = (_sides(values, which) for which in (0.0, 0.5, 1.0))
        rows.append((title, smallest, median, largest))
    poor = {fault.case for fault in report.faults if fault.kind in ("empty labels", "constant image") and fault.case}
    among = f" ({len(poor)} of them with empty labels or a constant image)" if poor else ""
    title = f"{cases} case{'s' if cases != 1 else ''} that can be trained on{among}; canonical order"
    return table(title, ["by axis", "smallest", "median", "largest"], rows)


def _sides(values: Sequence[Sequence[float]], which: float) -> str:
    import numpy as np

    return " x ".join(f"{side:.4g}" for side in np.quantile(values, which, axis=0))


def _class_table(fingerprint: Fingerprint) -> Any:
    from volseg.cli.render import table

    total = sum(fingerprint.voxels)
    rows: list[tuple[str, int | str, str, str, str]] = []
    for name, value in fingerprint.labels.items():
        count = fingerprint.voxels[value]
        present = sum(case.voxels[value] > 0 for case in fingerprint.cases)
        rows.append((name, value, f"{count:,}", f"{count / total:.3%}", f"{present} of {len(fingerprint.cases)}"))
    ignored = [case.ignored for case in fingerprint.cases]
    if any(ignored):
        share = f"{sum(ignored) / (total + sum(ignored)):.3%} of all"
        with_it = f"{sum(count > 0 for count in ignored)} of {len(ignored)}"
        rows.append(("ignore (not counted)", "", f"{sum(ignored):,}", share, with_it))
    return table("labels", ["label", "value", "voxels", "share", "cases with it"], rows)


def _channel_table(fingerprint: Fingerprint) -> Any:
    from volseg.cli.render import table

    rows = []
    for name, found in zip(fingerprint.channel_names, fingerprint.intensities, strict=True):
        if found is None:
            rows.append((name, *["-"] * 7))
            continue
        figures = (found.minimum, found.percentile_00_5, found.median, found.percentile_99_5, found.maximum)
        rows.append((name, *(f"{value:.5g}" for value in (*figures, found.mean, found.std))))
    columns = ["channel", "smallest", "0.5 %", "50 %", "99.5 %", "largest", "mean", "deviation"]
    return table("foreground intensities (mean and deviation clipped to 0.5 and 99.5 %)", columns, rows)
