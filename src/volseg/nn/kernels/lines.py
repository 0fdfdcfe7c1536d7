"""Passes over the lines of a block: what their kernels are bound with, and sums that threads take apart."""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Entry
from volseg.nn.kernels.rows import Activation, Affine, Rows


def sides(rows: Rows) -> dict[str, object]:
    """The sides of a block's planes."""
    return {"height": rows.sides[1], "breadth": rows.sides[2]}


def shape(rows: Rows) -> dict[str, object]:
    """The sides of a block's planes, and its channels."""
    return {**sides(rows), "channels": rows.channels}


def place(name: str, rows: Rows | None) -> dict[str, object]:
    """Where a tensor `name` lies, or that there is none."""
    if rows is None:
        return {name: None, f"{name}_plane": 0, f"{name}_line": 0}
    return {name: rows.address, f"{name}_plane": rows.plane, f"{name}_line": rows.line}


def affine_of(x: Activation) -> Affine:
    """The coefficients of an activation, of one that changes nothing where it has none."""
    channels = x.rows.channels
    return x.affine or Affine(torch.ones(channels), torch.zeros(channels), 1.0)


def scaled(x: Activation) -> Activation:
    """The same, with coefficients that change nothing where it has none."""
    return Activation(x.rows, affine_of(x))


def run_summed(
    entry: Entry, values: dict[str, object], sums: dict[str, Tensor | None], lines: int, floats: int = 0
) -> None:
    """Run a pass with sums of its own for each thread, and add them in the order of the threads.

    sums    by the parameter's name, float64, added to; None where nobody wants them
    floats  of scratch memory that each thread needs
    """
    threads = len(workers.shares(lines))
    by_thread = {
        name: None if total is None else torch.zeros(threads, *total.shape, dtype=torch.float64)
        for name, total in sums.items()
    }
    jobs = [
        entry.bind(**values, **{name: None if own is None else own[n] for name, own in by_thread.items()})
        for n in range(threads)
    ]
    workers.run(jobs, lines, floats)
    for name, total in sums.items():
        own = by_thread[name]
        if total is not None and own is not None:
            total += own.sum(0)
