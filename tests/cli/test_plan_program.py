"""plan-partition --program: the steps of the busiest rank as a table and as JSON, and what has none."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from volseg.cli.app import run
from volseg.config import ModelConfig
from volseg.networks.unet import unet
from volseg.program.build import segment_program, train_program
from volseg.program.schedule import IN_PLACE, RECOMPUTE


@pytest.fixture
def plan(capsys):
    """``plan(*arguments)``: exit code and what is printed of a plan with its program."""

    def start(*arguments):
        code = run(["plan-partition", "--shape=64x64x64", "--levels=2", *map(str, arguments), "--program"])
        out, err = capsys.readouterr()
        return code, out, err

    return start


def steps(plan, *arguments, task):
    code, out, _ = plan(*arguments, f"--for={task}", "--json")
    assert code == 0
    return json.loads(out)["tasks"][task]["program"]


def test_json_has_the_steps_that_training_runs(plan):
    found = steps(plan, "--ranks=2", "--base-channels=8", "--checkpoint-levels=1", task="train")
    network = unet(ModelConfig(base_channels=8, levels=2))
    program = train_program(network, checkpoint_stages=frozenset({1}))
    assert [step["label"] for step in found] == [step.label for step in program.steps]
    first = {"label": "encoder 0.1", "does": "convolve", "reads": ["image"], "writes": ["encoder 0.1"], "frees": []}
    assert first.items() <= found[0].items()
    assert "encoder 1.1, again" in {step["label"] for step in found}
    made = Counter(name for step in found for name in step["writes"])
    assert made == Counter(name for step in found for name in step["frees"]), "what is made goes"


def test_json_has_the_steps_of_the_schedule_that_is_chosen(plan):
    network = unet(ModelConfig(levels=2))
    found = steps(plan, "--ranks=1", task="segment")
    assert [step["label"] for step in found] == [step.label for step in segment_program(network, IN_PLACE).steps]
    large = "--shape=256x256x256", "--ranks=1"
    _, out, _ = plan(*large, "--for=segment", "--json")
    peaks = json.loads(out)["tasks"]["segment"]["peak_bytes_per_rank_by_schedule"]
    little = (peaks["in-place"] + peaks["recompute"]) // 2
    found = steps(plan, *large, f"--memory={little}B", task="segment")
    assert [step["label"] for step in found] == [step.label for step in segment_program(network, RECOMPUTE).steps]
    assert found[0]["does"] == "pass"


def test_where_stages_are_agglomerated_the_busiest_rank_gathers(plan):
    found = steps(plan, "--partition=2x1x1", "--agglomerate=2:1x1x1", task="train")
    kinds = Counter(step["does"] for step in found)
    assert all(kinds[name] == 1 for name in ("gather", "scatter", "gather backward", "scatter backward"))
    assert any(step["label"].startswith("encoder 2.1") for step in found)


def test_a_table_has_a_line_a_step(plan):
    code, out, _ = plan("--ranks=2")
    assert code == 0
    train, segment = out.split("program of the busiest rank, ")[1:]
    network = unet(ModelConfig(levels=2))
    for text, program in ((train, train_program(network)), (segment, segment_program(network, IN_PLACE))):
        lines = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
        assert [(int(line[0]), line[1].strip()) for line in lines] == [
            (number, step.label) for number, step in enumerate(program.steps)
        ]
    assert all(column in train.splitlines()[2] for column in ("held", "seconds"))
    assert "gradient of decoder 0.2" in train


@pytest.mark.parametrize("task", ["train", "segment"])
def test_what_steps_hold_and_cost_is_what_is_planned(plan, task):
    code, out, _ = plan("--ranks=1", "--json", f"--for={task}")
    assert code == 0
    answered = json.loads(out)["tasks"][task]
    found = answered["program"]
    assert 0 < max(step["held"] for step in found) <= answered["peak_bytes_per_rank"]
    assert all(step["seconds"] >= 0 for step in found)
    assert 0.3 * answered["seconds"] < sum(step["seconds"] for step in found) < 1.01 * answered["seconds"]
    assert found[0]["seconds"] > 0


def test_a_network_that_goes_layer_by_layer_has_none(plan, tmp_path):
    (tmp_path / "wide.toml").write_text("[model]\nkernel_size = 9\n")
    code, out, _ = plan("--ranks=1", "--config", tmp_path / "wide.toml")
    assert code == 0
    assert "train: no program, for encoder 0.1 is a convolution of 9x9x9; it runs layer by layer" in out
    assert steps(plan, "--ranks=1", "--config", tmp_path / "wide.toml", task="train") is None


def test_without_the_option_there_is_no_program_and_a_batch_script_stands_alone(plan, capsys):
    assert run(["plan-partition", "--shape=64x64x64", "--json"]) == 0
    assert "program" not in json.loads(capsys.readouterr().out)["tasks"]["train"]
    code, _, err = plan("--for=train", "--slurm")
    assert code == 2
    assert "--slurm and --program: give one of them" in err
    # The remedy: one of them.
    assert run(["plan-partition", "--shape=64x64x64", "--for=train", "--slurm"]) == 0
