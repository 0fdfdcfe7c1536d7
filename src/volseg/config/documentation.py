"""The configuration as a TOML file that explains itself: each key with the words of its table's docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from volseg.config.recipes import config_of_recipe, recipe_named
from volseg.config.toml import SECTIONS, config_tables

_WIDTH = 110


def documented_config(recipe: str = "default") -> str:
    """Every key of every table with its value in `recipe` and what it means, as TOML.

    Raises ConfigError where there is no such recipe.
    """
    purpose, tables = recipe_named(recipe).purpose, config_tables(config_of_recipe(recipe))
    defaults = config_tables(config_of_recipe("default"))
    parts = [_comment(f"The settings of a training run, recipe {recipe}. {purpose}"), _comment(_USE)]
    for name, kind in SECTIONS.items():
        lines = [_comment(summary_of(kind)), f"[{name}]"]
        known = descriptions_of(kind)
        for key, value in tables[name].items():
            default = defaults[name][key]
            changed = f" (default: {_toml(default)})" if value != default else ""
            lines.append("\n" + _comment(known[key] + changed) + f"\n{key} = {_toml(value)}")
        parts.append("\n".join(lines))
    parts.append(_comment(_LABELS) + "\n# [labels]\n# liver = [5, 6]\n# tumour = 7\n# ignore = 9")
    return "\n\n".join(parts) + "\n"


_USE = (
    "Use it with: volseg train --config FILE. What is left out has its default; options of the command line come first."
)
_LABELS = (
    "Labels of your own, made from the values that the label files hold (or from the data set's names for them); what "
    "no label names is background, and what is called ignore does not count. Without this table the data set's own are "
    "taken."
)


def summary_of(kind: type) -> str:
    """What a table is for: the first paragraph of its docstring."""
    return " ".join(inspect.getdoc(kind).partition("\n\n")[0].split())  # type: ignore[union-attr]


def descriptions_of(kind: Any) -> dict[str, str]:
    """What each field of a table means: the lines "name   what" of its docstring, and those that go on with one."""
    names = {one.name for one in dataclasses.fields(kind)}
    found: dict[str, str] = {}
    current = ""
    lines = (inspect.getdoc(kind) or "").partition("\n\n")[2].splitlines()
    for line in lines:
        begins = re.match(r"(\w+)\s+(\S.*)", line)
        if begins and begins[1] in names:
            current = begins[1]
            found[current] = begins[2]
        elif current and line.startswith(" ") and line.strip():
            found[current] += " " + line.strip()
        else:
            current = ""
    return found


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return repr(value)
