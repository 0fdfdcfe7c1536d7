"""The study as one HTML file that needs nothing else: words, figures, tables."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

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

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --faint: #6b7280; --line: #e5e7eb; --ground: #ffffff; --card: #f9fafb;
  --bad: #be123c; --good: #0f766e; --wait: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --faint: #9ca3af; --line: #374151; --ground: #111827;
  --card: #1f2937; --bad: #fb7185; --good: #5eead4; --wait: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; letter-spacing: -.005em; }
p, li { max-width: 78ch; }
.lead { color: var(--faint); margin: 0 0 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .92rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 2.6rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 8px; padding: .6rem; }
figcaption { color: var(--faint); font-size: .92rem; margin-top: .6rem; max-width: 92ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .6rem 0 1.4rem;
  white-space: nowrap; }
th { text-align: left; font-weight: 600; color: var(--faint); }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
td.wide { white-space: normal; min-width: 24rem; overflow-wrap: anywhere; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); } .wait { color: var(--wait); }
.tag { color: var(--faint); font-size: .8rem; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""


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
        _facts(facts),
        "<h2>Does the plan come true?</h2>",
        _agreement_table(agreed),
        "<h2>What the study shows</h2>",
        "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in said) + "</ul>",
        "<h2>Figures</h2>",
        *(_figure(figure, folder) for figure in figures),
        "<h2>Every case</h2>",
        "<p>Memory is the peak of the largest rank. Times are the median training step, and the network's part of "
        "segmenting when the kernels are compiled (the median of three). One thread a rank; where ranks had to "
        "share cores the row says nothing of time.</p>",
        _case_table([row for row in rows if row.done]),
    ]
    if failed:
        body += ["<h2>What failed</h2>", _table(("case", "why"), ((case_text(r.case), r.error) for r in failed), 2)]
    if left:
        body += [
            "<h2>What was left out</h2>",
            _table(("case", "why"), ((case_text(one.case), one.why) for one in left), 2),
        ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>volseg study</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _figure(figure: Figure, folder: Path) -> str:
    data = base64.b64encode((folder / figure.file).read_bytes()).decode("ascii")
    title, caption = escape(figure.title), escape(figure.caption)
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption><strong>{title}.</strong> {caption}</figcaption></figure>"
    )


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


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], wide: int) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=wide' if n + 1 == wide else ''}>{escape(text)}</td>" for n, text in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
