"""Pages of HTML that need nothing else: style and pictures are in them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

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
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; color: var(--faint); font-weight: 600; }
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


def page(title: str, body: Iterable[str]) -> str:
    """The whole file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def text(words: str) -> str:
    """Words as they stand in a page."""
    return escape(words)


def facts(named: Mapping[str, str]) -> str:
    """Names and what they stand for, one a line."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in named.items()) + "</dl>"


def picture(png: bytes, title: str, caption: str = "") -> str:
    """A PNG file's bytes, with words below."""
    data, title, caption = base64.b64encode(png).decode("ascii"), escape(title), escape(caption)
    return (
        f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption><strong>{title}.</strong> {caption}</figcaption></figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, wide: int = 0, words: Sequence[str] = ()) -> str:
    """A table.

    wide   the number of a column, from 1, whose long words are folded; 0 for none
    words  names of the columns that hold words; others are figures, set to the right. None given: all hold words
    """
    figures = {n for n, name in enumerate(columns) if words and name not in words}
    head = "".join(f"<th{_class(n, wide, figures)}>{escape(name)}</th>" for n, name in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{_class(n, wide, figures)}>{escape(cell)}</td>" for n, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _class(column: int, wide: int, figures: set[int]) -> str:
    return " class=n" if column in figures else " class=wide" if column + 1 == wide else ""
