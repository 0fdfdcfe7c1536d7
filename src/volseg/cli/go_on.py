"""The command that goes on with a run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def go_on_command(
    dataset: Path | None, run: Path, ranks: int, launcher: Sequence[str], options: Mapping[str, Any]
) -> str:  # fmt: skip
    """What a shell is to be given, on as many ranks as now.

    dataset   None: the run's own
    launcher  mpirun, or srun and what it has to be told
    options   name -> value, of those whose values no run folder keeps; True is a switch; None, False and "" are left
              out
    """
    words = [*launcher, "-n", str(ranks)] if ranks > 1 else []
    words += ["volseg", "train", *([] if dataset is None else [str(dataset)]), "-o", str(run), "--continue"]
    for name, value in options.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False and value != "":
            words += [name, str(value)]
    return shlex.join(words)
