"""The study as one HTML file that needs nothing else: words, figures, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from volseg.drawing import html
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.study.figures import Figure
from volseg.study.rows import Row
from volseg.study.runs import Left
from volseg.study.summary import (
    MEMORY_MEDIAN,
    MEMORY_WORST,
    TIME_MEDIAN,
    Agreement,
    case_text,
    size_text,
)

FILE = "report.html"


def html_report(
    facts: Mapping[str, str], rows: Sequence[Row], left: Sequence[Left], agreed: Sequence[Agreement],
    said: Sequence[str], figures: Sequence[Figure], folder: Path,
) -> str:  # fmt: skip
    """The report.

    facts    machine, versions, date, command ... by name
    said     sentences of what the study shows
    figures  their PNG files lie in `folder`
    """
    failed = [row for row in rows if not row.done]
    body = [
        "<h1>Memory and time of 3D U-Nets on whole volumes</h1>",
        '<p class="lead">What was measured by running <code>volseg train</code> and <code>volseg segment</code>, what '
        "the model foretells, and how well the two agree.</p>",
        html.facts(facts),
        "<h2>Does the plan come true?</h2>",
        _agreement_table(agreed),
        "<h2>What the study shows</h2>",
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>",
        "<h2>Figures</h2>",
        *(html.picture((folder / figure.file).read_bytes(), figure.title, figure.caption) for figure in figures),
        "<h2>Every case</h2>",
        "<p>Memory is the peak of the largest rank. Times are the median training step, and the network's part of "
        "segmenting when the kernels are compiled (the median of three). One thread a rank; where ranks had to "
        "share cores the row says nothing of time.</p>",
        _case_table([row for row in rows if row.done]),
    ]
    if failed:
        body += [
            "<h2>What failed</h2>",
            html.table(("case", "why"), ((case_text(r.case), r.error) for r in failed), wide=2),
        ]
    if left:
        body += [
            "<h2>What was left out</h2>",
            html.table(("case", "why"), ((case_text(one.case), one.why) for one in left), wide=2),
        ]
    return html.page("volseg study", body)


def _agreement_table(agreed: Sequence[Agreement]) -> str:
    cells = []
    for one in agreed:
        memory = one.what.startswith("memory")
        aim = MEMORY_MEDIAN if memory else TIME_MEDIAN
        worst = abs(one.worst - 1)
        cells.append(
            f"<tr><td>{escape(one.what)}</td><td class=n>{one.count}</td>"
            f"<td class='n {_judged(one.median, aim)}'>{one.median:.1%}</td><td class=n>{aim:.0%}</td>"
            f"<td class='n {_judged(worst, MEMORY_WORST) if memory else ''}'>{worst:.1%}</td>"
            f"<td class=n>{f'{MEMORY_WORST:.0%}' if memory else ''}</td>"
            f"<td>{escape(case_text(one.worst_row.case))}</td></tr>"
        )
    if not cells:
        return "<p>Nothing was measured.</p>"
    head = (
        "<tr><th>planned against measured</th><th class=n>rows</th><th class=n>median off</th><th class=n>aim</th>"
        "<th class=n>worst off</th><th class=n>aim</th><th>worst row</th></tr>"
    )
    return f'<div class="scroll"><table>{head}{"".join(cells)}</table></div>'


def _judged(value: float, aim: float) -> str:
    return "good" if value <= aim else "bad"


_COLUMNS = (
    "task", "volume", "channels", "ranks", "grid", "variant", "memory, measured", "planned", "ratio",
    "time, measured", "planned", "ratio", "load balance",
)  # fmt: skip
_TEXT = ("task", "volume", "grid", "variant")


def _case_table(rows: Sequence[Row]) -> str:
    head = "".join(f"<th{'' if name in _TEXT else ' class=n'}>{escape(name)}</th>" for name in _COLUMNS)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(map(_case_row, rows))}</table></div>'


def _case_row(row: Row) -> str:
    case = row.case
    cells = [
        ("", case.task),
        ("", size_text(case)),
        ("n", str(case.base_channels)),
        ("n", str(case.ranks)),
        ("", "" if row.dims is None else format_triple(row.dims)),
        ("", case.variant),
        ("n", gibibytes(row.peak or 0)),
        ("n", gibibytes(row.planned_peak or 0)),
        _ratio(row.memory_ratio, MEMORY_WORST),
        ("n", _seconds(row.seconds) if row.timed else "cores shared"),
        ("n", _seconds(row.planned_seconds) if row.timed else ""),
        _ratio(row.time_ratio, None),
        ("n", "" if row.load_balance is None or case.ranks == 1 else f"{row.load_balance:.3f}"),
    ]
    return "<tr>" + "".join(f"<td class='{kind}'>{escape(text)}</td>" for kind, text in cells) + "</tr>"


def _ratio(value: float | None, aim: float | None) -> tuple[str, str]:
    if value is None:
        return "n", ""
    return ("n bad" if aim is not None and abs(value - 1) > aim else "n"), f"{value:.3f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"
