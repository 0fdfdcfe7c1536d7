"""Recipes, and the file of `volseg init-config`: it documents every setting and parses back to what it says."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

from volseg.cli.app import run
from volseg.config import Config, config_tables, parse_config, read_config
from volseg.config.documentation import descriptions_of, documented_config, summary_of
from volseg.config.recipes import RECIPES, config_of_recipe
from volseg.config.toml import SECTIONS
from volseg.errors import ConfigError


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_is_documented_where_it_is_defined(name):
    kind = SECTIONS[name]
    fields = [one.name for one in dataclasses.fields(kind)]
    assert list(descriptions_of(kind)) == fields, "a line for each field, in their order"
    assert all(len(words) > 3 for words in descriptions_of(kind).values())
    assert summary_of(kind).endswith(".")


@pytest.mark.parametrize("name", RECIPES)
def test_the_file_parses_back_to_its_recipe(name):
    tables = tomllib.loads(documented_config(name))
    assert {section: set(values) for section, values in tables.items()} == {
        section: {one.name for one in dataclasses.fields(kind)} for section, kind in SECTIONS.items()
    }
    assert parse_config(tables, "here") == config_of_recipe(name)


def test_the_default_recipe_is_the_defaults():
    assert config_of_recipe("default") == Config()
    assert "(default:" not in documented_config()


def test_a_recipe_s_file_says_what_it_is_for_and_what_it_changes():
    text = documented_config("nnunet")
    assert "recipe nnunet" in text
    assert 'optimizer = "sgd"' in text
    assert '(default: "adamw")' in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_words_of_a_field_are_those_of_its_docstring():
    @dataclasses.dataclass
    class Table:
        """A table.

        one    the first, which
               goes on
        other_and_longer the second
        nothing  is no field
        two further words
        """

        one: int = 1
        other_and_longer: int = 2

    assert descriptions_of(Table) == {"one": "the first, which goes on", "other_and_longer": "the second"}


def test_a_file_goes_before_the_recipe(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[training]\nclip = 5\n")
    found = read_config(path, config_of_recipe("nnunet"))
    assert (found.training.clip, found.training.optimizer) == (5.0, "sgd")


def test_init_config_writes_a_file_that_train_reads(tmp_path, capsys):
    path = tmp_path / "run.toml"
    assert run(["init-config"]) == 0
    assert parse_config(tomllib.loads(capsys.readouterr().out), "stdout") == Config()
    assert run(["init-config", "-o", str(path), "--recipe", "adamw"]) == 0
    assert read_config(path) == config_of_recipe("adamw")
    assert run(["init-config", "-o", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["init-config", "-o", str(path), "--overwrite"]) == 0
    assert read_config(path) == Config()
    assert run(["init-config", "-o", str(tmp_path)]) == 2
    assert run(["init-config", "-o", str(tmp_path / "no" / "run.toml")]) == 2
    assert "folder does not exist" in capsys.readouterr().err


def test_an_unknown_recipe_suggests_the_nearest(tmp_path, capsys):
    with pytest.raises(ConfigError, match="--recipe nnunett: no such recipe; did you mean nnunet"):
        config_of_recipe("nnunett")
    assert run(["init-config", "--recipe", "xyz"]) == 2
    assert "known: default, nnunet, adamw" in capsys.readouterr().err


def test_continue_refuses_a_recipe(tmp_path, capsys):
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(SystemExit, match="2"):
        run(["train", "-o", str(tmp_path), "--continue", "--recipe", "nnunet"])
    assert "--recipe nnunet: --continue goes on with the settings of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": {"clip": 1}}, r"unknown key model.clip; it belongs in \[training\]"),
        ({"training": {"levels": 1}}, r"unknown key training.levels; it belongs in \[model\] or \[multigrid\]"),
        ({"epochs": 3}, r"unknown key epochs outside of the tables; it belongs in \[training\]"),
        ({"epochs": {"a": 1}}, r"unknown table \[epochs\]; it belongs in \[training\]"),
        ({"training": {"clip": {"norm": 3}}}, r"training.clip = \{'norm': 3\} must be a number"),
        ({"training": {"class_weights": [1, -1]}}, r"training.class_weights = \[1.0, -1.0\]: -1.0 is outside"),
        ({"training": {"class_weights": [0, 0]}}, r"one must be above 0"),
        ({"training": {"momentum": 1}}, r"training.momentum = 1.0 is outside"),
        ({"training": {"ema": 1.0}}, r"training.ema = 1.0 is outside"),
        ({"training": {"schedule": "step"}}, r"'step' is not one of poly, cosine, constant"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(tables, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(tables, "run.toml")


def test_tables_keep_their_order():
    assert list(config_tables(Config())) == list(SECTIONS)
