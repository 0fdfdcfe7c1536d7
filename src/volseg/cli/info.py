"""``volseg info``: what a volume, or a run folder, is. Imports neither torch nor mpi4py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from volseg.cli.options import Debug, FixTilt, JsonOutput, RawShape, RawType, ResampleGaps, Series, VoxelSize


def info(
    path: Annotated[
        Path,
        typer.Argument(help="NIfTI, .zarr, DICOM, TIFF (file, folder), NRRD, MetaImage, HDF5, raw, or a run folder."),
    ],
    series: Series = None,
    fix_tilt: FixTilt = False,
    resample_gaps: ResampleGaps = False,
    voxel_size: VoxelSize = None,
    shape: RawShape = None,
    dtype: RawType = None,
    header_only: Annotated[
        bool, typer.Option("--header-only", help="Read no voxels: no value range, no labels.")
    ] = False,
    json_output: JsonOutput = False,
    debug: Debug = False,
) -> None:
    """Show a volume's shape, spacing, orientation, type, range of values and, for a mask, its labels.

    For a run folder: its configuration and report.
    """
    from volseg.api import info as facts_of

    facts = facts_of(
        path,
        series=series,
        fix_tilt=fix_tilt,
        resample_gaps=resample_gaps,
        voxel_size=voxel_size,
        shape=shape,
        dtype=dtype,
        header_only=header_only,
    )
    if json_output:
        _print(json.dumps(facts, indent=2))
        return
    if "config" in facts:
        _print(_run_table(path, facts))
        return
    _print(_facts_table(facts))
    if facts.get("labels"):
        _print(_labels_table(facts))


def _facts_table(facts: dict[str, Any]) -> Any:
    from volseg.cli.render import table

    rows = [
        ("path", facts["path"]),
        ("format", facts["format"]),
        ("voxels D x H x W", " x ".join(str(n) for n in facts["shape"])),
        ("spacing mm", " x ".join(f"{side:.4g}" for side in facts["spacing_mm"])),
        ("orientation D, H, W", ", ".join(facts["orientation_dhw"])),
        ("type", facts["dtype"]),
    ]
    if "minimum" in facts:
        none = facts["minimum"] is None
        rows.append(("values", "none finite" if none else f"{facts['minimum']:g} to {facts['maximum']:g}"))
        if facts["not_finite"]:
            rows.append(("NaN or infinite", f"{facts['not_finite']:,} voxels"))
    rows += list(facts["facts"].items())
    rows += [("mended", fix) for fix in facts["fixes"]]
    rows += [
        ("left out", f"{number} file{'' if number == 1 else 's'}: {reason}")
        for reason, number in facts["dropped"].items()
    ]
    rows += [("warning", warning) for warning in facts["warnings"]]
    return table("volume", ["", "value"], rows, text_columns=2)


def _labels_table(facts: dict[str, Any]) -> Any:
    from volseg.cli.render import millilitres, table

    names = facts.get("label_names", {})
    columns = ["label", *(["name"] if names else []), "voxels", "ml"]
    rows = [
        (label, *([names.get(label, "")] if names else []), f"{voxels:,}", millilitres(voxels * facts["voxel_ml"]))
        for label, voxels in facts["labels"].items()
    ]
    return table("labels", columns, rows, text_columns=2 if names else 1)


def _run_table(path: Path, run: dict[str, Any]) -> Any:
    from volseg.cli.render import table

    report = run["report"] or {}
    if "imported" in report:  # its settings are defaults that nothing was made with
        rows = [*_flat(report["imported"]), ("volseg", str(report.get("volseg")))]
    else:
        rows = [*_flat(run["config"]), *(("report." + name, value) for name, value in _flat(report))]
    return table("run", ["", "value"], [("path", str(path)), *rows], text_columns=2)


def _flat(values: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested tables as dotted names; a list of numbers or words as one line, longer things by their length."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            text = ", ".join(str(item) for item in value)
            rows.append((before + name, text if len(text) <= 60 else f"{len(value)} entries"))
        else:
            rows.append((before + name, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return rows


def _print(result: Any) -> None:
    from volseg.cli.render import Screen

    Screen(progress=False).print(result)
