"""The steps of a planned program as a table, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from volseg.cli.render import table
from volseg.machine import gibibytes
from volseg.networks.coverage import why_not_covered
from volseg.planning.answer import Answer
from volseg.planning.explanation import time_text
from volseg.planning.listing import ListedStep, listed

_WIDTH = 1000
"""Columns: lines that are wider than a terminal are not broken, so that a step is a line."""


def show_programs(answer: Answer) -> None:
    """Print the program of each task, or why it has none."""
    console = Console(width=_WIDTH)
    for task, answered in answer.tasks.items():
        steps = listed(answered.question, answered.run)
        if steps is None:
            why = why_not_covered(answered.question.network)
            console.print(f"{task}: no program, for {why}; it runs layer by layer", highlight=False, soft_wrap=True)
        else:
            console.print(drawn(task, steps))


def drawn(task: str, steps: Sequence[ListedStep]) -> Table:
    """The table."""
    rows = [
        (number, step.label, step.does, ", ".join(step.reads), ", ".join(step.writes), ", ".join(step.frees),
         gibibytes(step.held), time_text(step.seconds))
        for number, step in enumerate(steps)
    ]  # fmt: skip
    columns = ("", "step", "does", "reads", "writes", "frees", "held", "seconds")
    return table(f"program of the busiest rank, {task}", columns, rows, text_columns=6)
