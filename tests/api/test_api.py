"""The functions of volseg in Python: like the commands, lazily imported, and the example of the documentation."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import volseg
from tiny import SERIAL, tiny_dataset
from volseg.api.ranks import ranks
from volseg.api.settings import Settings
from volseg.config import Config, ModelConfig, TrainingConfig
from volseg.errors import ConfigError, VolumeError
from volseg.events import Progress

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "python-api.md"
COMMANDS = [name for name in volseg.__all__ if name not in ("all_ranks", "run_study")]
DRAWING = {"quiet", "no_progress", "debug", "json", "json_output"}
SCRIPT = {"batch", "slurm", "account", "queue", "time", "setup", "launch_options"}
OF_THE_COMMAND = {"ingest": {"list_series"}, "plan_partition": {"plot", "program", *SCRIPT}}
KEYWORD = inspect.Parameter.KEYWORD_ONLY
OF_THE_FUNCTION = {"communicator", "listen", "command"}


def parameters(function):
    """By name; settings that a function takes by name stand for themselves."""
    found = dict(inspect.signature(function).parameters)
    if "settings" in found:
        del found["settings"]
        found |= {name: inspect.Parameter(name, KEYWORD, default=None) for name in Settings.__annotations__}
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_an_argument_of_its_function(name):
    command = getattr(import_module(f"volseg.cli.{name}"), name)
    options = {key: value for key, value in parameters(command).items() if key not in DRAWING}
    arguments = {key: value for key, value in parameters(getattr(volseg, name)).items() if key not in OF_THE_FUNCTION}
    assert set(options) - OF_THE_COMMAND.get(name, set()) == set(arguments)
    for key, argument in arguments.items():
        before, now = options[key].default, argument.default
        if isinstance(now, bool | int | float) and not isinstance(before, str):
            assert now == before, key


def test_what_is_offered_stands_in_the_stub_and_in_the_document():
    stub = ast.parse(Path(volseg.__file__).with_suffix(".pyi").read_text())
    names = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(volseg.__all__) == set(import_module("volseg.api").__all__)
    rows = re.findall(r"^\| `(\w+)\(", DOCUMENT.read_text(), flags=re.MULTILINE)
    assert set(rows) == names
    for name in names:
        assert getattr(volseg, name).__doc__
        assert name in dir(volseg)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = volseg.trian


def test_importing_volseg_starts_neither_torch_nor_mpi(python):
    script = (
        "import sys, volseg\n"
        "assert not {'torch', 'mpi4py', 'numpy'} & set(sys.modules)\n"
        "volseg.train\n"
        "answer = volseg.plan_partition(shape=(64, 64, 64), ranks=[2], task='train')\n"
        "assert answer.fits and answer.tasks['train'].run.ranks == 2\n"
        "print({'torch', 'mpi4py'} & set(sys.modules))\n"
    )
    ended = python(["-c", script])
    assert ended.stdout.strip() == "set()", ended.stderr


@pytest.fixture
def example(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)
    script = tmp_path / "script.py"
    script.write_text(code)
    return script


def test_the_example_of_the_document_in_one_process_and_on_two_ranks(example, tmp_path, python, mpirun):
    said = []
    for name, start in (("one", python), ("two", lambda *a, **k: mpirun(2, *a, **k))):
        (tmp_path / name).mkdir()
        ended = start([example], cwd=tmp_path / name, timeout=200)
        assert ended.returncode == 0, ended.stderr
        said.append(ended.stdout)
        assert (tmp_path / name / "run" / "report.html").is_file()
        assert (tmp_path / name / "mask.nii.gz").is_file()
    assert said[0].count("\n") == said[1].count("\n") == 3
    assert all("any number of ranks: True" in text for text in said)


FAILING = """
import volseg
from volseg.errors import VolsegError
rank = volseg.all_ranks().rank
try:
    volseg.train("nowhere", "run")
except VolsegError as error:
    print(f"rank {rank} caught: {error}")
volseg.generate("data", shape=(8, 8, 8), cases=1)
if rank == 0:
    print("went on")
volseg.generate("again", shape=(8, 8, 8), cases=1, listen=None)
"""


def test_an_error_of_all_ranks_is_caught_and_one_of_a_single_rank_ends_the_job(tmp_path, mpirun):
    """A listener that fails fails on the root alone: the others would wait for it for ever."""
    script = tmp_path / "script.py"
    script.write_text(FAILING)
    ended = mpirun(2, [script], cwd=tmp_path, timeout=60)
    assert ended.stdout.count("caught: nowhere") == 2
    assert "went on" in ended.stdout
    assert ended.returncode != 0
    assert "'NoneType' object is not callable" in ended.stderr


def test_training_takes_a_configuration_and_overrides_it(tmp_path):
    data, events = tiny_dataset(tmp_path / "data"), []
    config = Config(ModelConfig(base_channels=4, levels=2), TrainingConfig(epochs=5, validation=0))
    report = volseg.train(
        data, tmp_path / "run", config=config, epochs=1, communicator=SERIAL, listen=events.append, trace=None
    )
    assert report.steps == 2
    assert any(isinstance(event, Progress) and event.done == 2 for event in events)
    found = volseg.info(tmp_path / "run")
    assert found["config"]["training"]["epochs"] == 1
    assert found["config"]["model"]["base_channels"] == 4
    again = volseg.train(data, str(tmp_path / "run"), proceed=True, epochs=2, communicator=SERIAL)
    assert again.steps == 4
    with pytest.raises(ConfigError, match="leave out --continue"):
        volseg.train(data, tmp_path / "none", proceed=True, communicator=SERIAL)


def test_a_name_that_is_no_setting_is_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        volseg.train(tmp_path, tmp_path / "run", communicator=SERIAL, epoch=1)


def test_a_commands_texts_are_taken_as_values_are(tmp_path):
    data, config = tiny_dataset(tmp_path / "data", cases=1), Config(ModelConfig(base_channels=4, levels=1))
    volseg.train(
        data, tmp_path / "run", config=config, epochs=1, flip="dh", crop="8x8x8", spacing="native", max_time="1h",
        checkpoint_levels="1", communicator=SERIAL,
    )  # fmt: skip
    kept = volseg.info(tmp_path / "run")["config"]
    assert list(kept["augmentation"]["flip"]) == [0.5, 0.5, 0.0]
    assert list(kept["data"]["crop"]) == [8, 8, 8]
    assert kept["data"]["spacing"] == "own"
    assert list(kept["training"]["checkpoint_levels"]) == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"flip": "x"}, "--flip x: give some of the axes"),
        ({"flip": 0.5}, r"augmentation.flip = 0.5 must be a list of numbers, such as \[0.5"),
        ({"crop": "64"}, "--crop 64: give three sizes"),
        ({"crop": 64}, "data.crop = 64 must be a list of whole numbers"),
        ({"spacing": "fine"}, "--spacing fine: give own"),
        ({"max_time": "soon"}, "--max-time soon: give a time"),
        ({"max_time": (1, 2)}, "max_time = .*: give seconds"),
        ({"epochs": "ten"}, "training.epochs = 'ten' must be a whole number"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        volseg.train(tmp_path, tmp_path / "run", communicator=SERIAL, **arguments)


def test_volumes_in_and_out(tmp_path):
    data = volseg.generate(tmp_path / "set", shape=(8, 9, 10), cases=1, communicator=SERIAL)
    image = data.cases[0].images[0].path
    report = volseg.ingest(image, tmp_path / "out.zarr", communicator=SERIAL)
    assert report.shape == (8, 9, 10)
    assert volseg.info(tmp_path / "out.zarr", header_only=True)["shape"] == [8, 9, 10]
    assert volseg.check(tmp_path / "set", communicator=SERIAL).is_sound
    label = data.cases[0].label
    assert set(volseg.evaluate(label, label, communicator=SERIAL).dice.values()) == {1.0}
    with pytest.raises(VolumeError, match="exists"):
        volseg.ingest(image, tmp_path / "out.zarr", communicator=SERIAL)


def test_plans_of_arguments_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="--replicas 2: segmenting has none"):
        volseg.plan_partition(shape=(64, 64, 64), task="segment", replicas=2)
    with pytest.raises(ConfigError, match="give a volume, or its size"):
        volseg.plan_partition()
    assert volseg.plan_partition(shape=(64, 64, 64), memory="64GiB", task="train").tasks["train"].run.ranks == 1


def test_only_the_root_listens():
    class Second(type(SERIAL)):
        rank = 1

    with ranks(SERIAL, print) as (_, heard):
        assert heard is print
    with ranks(Second(), print) as (_, heard):
        assert heard is not print
