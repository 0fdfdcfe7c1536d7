"""The options that several commands share."""

from typing import Annotated

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bars and no progress lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
