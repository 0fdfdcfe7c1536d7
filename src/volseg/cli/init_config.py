"""``volseg init-config``: a configuration file with every setting, its default and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from volseg.cli.options import Debug, Overwrite
from volseg.cli.streams import forgiving


def init_config(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File.  [default: the terminal]")] = None,
    recipe: Annotated[str, typer.Option(help="Whose values: default, nnunet, adamw or residual.")] = "default",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write a TOML file for `volseg train --config`: every setting, its default and what it means.

    With --recipe nnunet the values of a recipe in place of the defaults; the file says what it is for.
    """
    from volseg.config.documentation import documented_config
    from volseg.errors import ConfigError
    from volseg.files import write_text

    text = documented_config(recipe)
    if output is None:
        print(text, end="")
        return
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; give a file, such as {output / 'run.toml'}")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output}: exists already; replace it with --overwrite, or give another -o")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: its folder does not exist; make it first, or give another -o")
    write_text(output, text)
    with forgiving():
        print(f"{output}: recipe {recipe}; use it with: volseg train --config {output}")
