"""The program ``volseg``: its commands, and the one place where errors become exit codes.

Each command lives in a module of its own, imported when it is called, so ``volseg --help`` stays quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from volseg import __version__
from volseg.cli.failure import FAILED, describe
from volseg.cli.streams import lost_result, secure_streams
from volseg.deferred import own_this_process
from volseg.distributed.launchers import launched_rank

# In the order in which they are used; what each does, as `volseg --help` shows it.
COMMANDS = {
    "generate": "Make a data set of random ellipsoids to train on.",
    "ingest": "Bring a CT (NIfTI or a DICOM folder) into one volume file.",
    "info": "Show a volume's shape, spacing, orientation, values and labels.",
    "check": "Verify every case of a data set, and show what it holds.",
    "init-config": "Write a configuration file with every setting and what it means.",
    "plan-partition": "Plan how a volume is split over ranks, and the memory each needs.",
    "calibrate": "Measure this machine, so that plans know how long things take.",
    "study": "Run sizes, channels and ranks, and lay the model beside what was measured.",
    "train": "Train a 3D U-Net on whole volumes.",
    "import": "Make a run folder of a model of nnU-Net, or of a torch module.",
    "segment": "Segment a scan; the mask lies on the scan's own grid.",
    "evaluate": "Compare masks with reference masks: Dice, IoU, volumes.",
    "export": "Write a model for nnU-Net's predictor, or as a torch module.",
    "verify-partition": "Show that this job's ranks compute what one rank computes.",
}


class _Commands(TyperGroup):
    """The commands, each imported only when it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, short_help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest


def module_of(command: str) -> str:
    """The name of a command's module and function: its own, but for what is a word of Python."""
    return "import_model" if command == "import" else command.replace("-", "_")


def load(name: str) -> Any:
    """The command `name`, ready to be invoked: ``train`` is the function ``volseg.cli.train.train``."""
    module = module_of(name)
    function = getattr(import_module(f"volseg.cli.{module}"), module)
    single = typer.Typer(add_completion=False)
    single.command(name)(function)
    return typer.main.get_command(single)


app = typer.Typer(
    name="volseg",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"volseg {__version__}")
        raise typer.Exit


@app.callback()
def volseg(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train and run 3D U-Nets on whole volumes, split over MPI ranks: the same answer on any number of ranks.

    Start a job on 4 ranks with: mpirun -n 4 volseg train
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0 done, 1 failed, 2 wrong input, 130 interrupted.

    Under a launcher only the first rank prints: help, usage errors and everything before the ranks are connected.
    """
    first = launched_rank() == 0
    with contextlib.ExitStack() as stack:
        if not first:
            stack.enter_context(
                contextlib.redirect_stdout(
                    stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
                )
            )
        try:
            code = app(args=list(arguments), prog_name="volseg", standalone_mode=False)
        except (Exception, KeyboardInterrupt) as error:
            failure = describe(error, debug="--debug" in arguments)
            if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help
                return failure.code
            if first:
                print(failure.message, file=sys.stderr, flush=True)
            else:
                # Some launchers end a job at its first non-zero exit: let the rank that speaks finish.
                time.sleep(1.0)
            return failure.code
    lost = lost_result() if first else None
    if lost is not None:
        print(describe(lost).message, file=sys.stderr, flush=True)
        return FAILED
    return code if isinstance(code, int) else 0


def main() -> None:
    """The console script."""
    own_this_process()
    secure_streams()
    sys.exit(run(sys.argv[1:]))
