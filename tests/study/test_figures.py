"""Every figure is drawn, from a whole study and from next to nothing, and the report needs no other file."""

import re
from html.parser import HTMLParser

import pytest

from study_rows import FAILED, RANGES, all_rows, row_of, view
from volseg.study.cases import PARTS, TRAIN, Case, cube
from volseg.study.figures import FIGURES, draw, figures_of
from volseg.study.html_report import html_report
from volseg.study.runs import Left
from volseg.study.summary import agreements

LABELS = {
    "memory_side.png": "side of the volume, voxels",
    "memory_channels.png": "channels at full resolution (doubled at each level, up to 320)",
    "memory_ranks.png": "ranks",
    "strong_scaling.png": "ranks",
    "weak_scaling.png": "ranks",
    "where_time_goes.png": "",
    "planned_measured.png": "measured, GB",
}


@pytest.fixture(scope="module")
def whole():
    return view()


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.file)
def test_a_whole_study_is_drawn(figure, whole, tmp_path):
    (path,) = draw([figure], whole, tmp_path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    assert [p.name for p in tmp_path.iterdir()] == [figure.file]
    drawn = figure.draw(whole)
    assert LABELS[figure.file] in {axes.get_xlabel() for axes in drawn.axes}
    assert all(axes.get_title(loc="left") for axes in drawn.axes)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.file)
@pytest.mark.parametrize("rows", [[], [FAILED], [row_of(Case(TRAIN, cube(96), 16, 3, 1, "plain"))]])
def test_hardly_any_rows_are_drawn_too(figure, rows, tmp_path):
    (path,) = draw([figure], view(rows), tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


def measured(axes):
    """Coordinates of everything drawn with filled markers and no line."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "None" and line.get_marker() == "o"]
    return {(x, round(y, 6)) for line in lines for x, y in zip(*line.get_data(), strict=True)}


def test_measured_points_are_where_they_were_measured(whole):
    drawn = next(figure for figure in FIGURES if figure.file == "memory_side.png").draw(whole)
    found = measured(drawn.axes[0])
    for row in all_rows():
        if row.done and row.case.ranks == 1 and row.case.base_channels == 16 and row.case.variant == "plain":
            assert (row.case.shape[0], round(row.peak / 1e9, 6)) in found


def test_rows_that_failed_are_nowhere(whole):
    drawn = next(figure for figure in FIGURES if figure.file == "memory_ranks.png").draw(whole)
    assert FAILED.case.ranks not in {x for x, _ in measured(drawn.axes[0])}


def test_beyond_what_was_measured_lines_are_dashed_and_the_ground_is_shaded(whole):
    axes = next(figure for figure in FIGURES if figure.file == "memory_side.png").draw(whole).axes[0]
    last = max(row.case.shape[0] for row in whole.rows if row.done and row.case.cube)
    for line in axes.get_lines():
        if line.get_linestyle() == "-" and line.get_linewidth() > 1.5:
            assert max(line.get_xdata()) <= last
    assert any("predicted" in text.get_text() for text in axes.texts)
    assert axes.patches


def test_a_part_has_its_own_figures():
    assert {figure.file for figure in figures_of(["memory"])} == {"memory_side.png", "planned_measured.png"}
    assert figures_of(PARTS) == list(FIGURES)


class Links(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self):
        super().__init__()
        self.found, self.text, self.tags = [], "", []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows, figures = all_rows(), figures_of(["channels"])
    draw(figures, whole, folder)
    left = [Left(rows[0].case, "<i>no time</i>")]
    facts = {"machine": "<script>alert(1)</script>", "command": "volseg study --launcher 'srun -n {ranks} & more'"}
    return html_report(facts, rows, left, agreements(rows), ["a < b"], figures, folder)


def test_the_report_needs_nothing_else(page):
    links = Links()
    links.feed(page)
    assert len(links.found) == len(figures_of(["channels"]))
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", page))
    assert "url(" not in page
    assert "@import" not in page


def test_the_report_escapes_what_it_quotes(page):
    links = Links()
    links.feed(page)
    assert "script" not in links.tags
    assert "b" not in links.tags
    assert "i" not in links.tags
    for quoted in ("<script>alert(1)</script>", "<i>no time</i>", "a < b", FAILED.error, "& more"):
        assert quoted in links.text


def test_the_report_has_every_row(page):
    links = Links()
    links.feed(page)
    assert page.count("<tr><td class=''>") == sum(row.done for row in all_rows())
    assert "cores shared" in links.text
    assert links.text.count("planned against measured") == 1
    assert RANGES.sides[-1] == 96
    assert "96³" in links.text
