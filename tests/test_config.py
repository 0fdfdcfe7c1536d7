"""Settings from TOML: what is wrong is named, with what was meant."""

from __future__ import annotations

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.config import (
    PRESETS,
    Config,
    ModelConfig,
    TrainingConfig,
    config_tables,
    override,
    parse_config,
    preset,
    read_config,
)
from volseg.errors import ConfigError


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("")
    assert read_config(path) == Config()
    Config().check()


def test_round_trip_through_toml(tmp_path):
    config = Config(
        ModelConfig(in_channels=2, classes=5, base_channels=8, levels=4, kernel_size=5, norm="group", dropout=0.25),
        TrainingConfig(epochs=3, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, seed=7, validation=0),
    )
    path = tmp_path / "config.toml"
    path.write_bytes(tomli_w.dumps(config_tables(config)).encode())
    assert read_config(path) == config


def test_kernels_and_strides_survive_the_round_trip(tmp_path):
    model = ModelConfig(
        levels=1, kernels=((1, 3, 3), (5, 3, 7)), strides=((1, 2, 2),), features=(8, 24), convolutions=3, down="stride",
        anisotropy="none",
    )  # fmt: skip
    path = tmp_path / "config.toml"
    path.write_bytes(tomli_w.dumps(config_tables(Config(model))).encode())
    assert read_config(path).model == model
    assert (model.widths, model.factors, model.multiple) == ((8, 24), ((1, 1, 1), (1, 2, 2)), (1, 2, 2))
    assert (model.stage_kernels, model.halvings) == (model.kernels, model.strides)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        ModelConfig, base_channels=st.integers(1, 40).map(lambda n: 8 * n), levels=st.integers(0, 8),
        kernel_size=st.sampled_from([1, 3, 5, 7, 9, 11]), norm=st.sampled_from(["instance", "group", "batch", "none"]),
        activation=st.sampled_from(["relu", "leaky_relu", "silu", "gelu", "gelu_tanh", "sigmoid"]),
        up=st.sampled_from(["transpose", "trilinear", "nearest"]),
        dropout=st.floats(0, 0.99),
    )
)  # fmt: skip
def test_any_valid_model_survives_the_round_trip(model):
    assert parse_config(config_tables(Config(model)), "here").model == model
    assert len(model.widths) == model.levels + 1
    assert model.multiple == (2**model.levels,) * 3
    assert max(model.widths) <= 320


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"modle": {}}, r"unknown table \[modle\]; did you mean model\?"),
        ({"model": {"chanels": 3}}, r"unknown key model.chanels; did you mean"),
        ({"training": {"lerning_rate": 1}}, r"unknown key training.lerning_rate; did you mean learning_rate\?"),
        ({"training": {"xyz": 1}}, r"unknown key training.xyz; known: epochs, optimizer"),
        ({"model": 3}, r"\[model\] must be a table"),
        ({"model": {"levels": "three"}}, r"model.levels = 'three' must be a whole number"),
        ({"model": {"levels": 2.5}}, r"model.levels = 2.5 must be a whole number"),
        ({"model": {"levels": True}}, r"model.levels = True must be a whole number"),
        ({"model": {"dropout": "much"}}, r"model.dropout = 'much' must be a number"),
        ({"model": {"dropout": False}}, r"model.dropout = False must be a number"),
        ({"model": {"norm": "layer"}}, r"model.norm = 'layer' is not one of instance, group, batch, none"),
        ({"model": {"norm": ["batch"]}}, r"model.norm = \['batch'\] is not one of"),
        ({"training": {"optimizer": "adam"}}, r"training.optimizer = 'adam' is not one of adamw, sgd"),
        ({"model": {"levels": 9}}, r"model.levels = 9 is outside 0..8"),
        ({"model": {"base_channels": 0}}, r"model.base_channels = 0 is outside 1..320"),
        ({"model": {"kernel_size": 4}}, r"model.kernel_size = 4 is even; use an odd one"),
        ({"model": {"dropout": 1}}, r"model.dropout = 1.0 is outside 0.0..0.99"),
        ({"model": {"dropout": float("nan")}}, r"model.dropout = nan is outside"),
        ({"model": {"norm": "group", "base_channels": 12}}, r"norm = 'group' needs channels in multiples of 8"),
        ({"model": {"kernels": 3}}, r"model.kernels = 3 must be a list of three whole numbers each, such as \[\[1, 2"),
        ({"model": {"strides": [2, 2, 2]}}, r"model.strides = .* must be a list of three whole numbers each"),
        ({"model": {"strides": [[2, 2, True]]}}, r"model.strides = .* must be a list of three whole numbers each"),
        (
            {"model": {"kernels": [[3, 3, 3]]}},
            r"model.kernels has 1 entries, but levels = 3 gives resolutions: 4",
        ),
        ({"model": {"strides": [[2, 2, 2]] * 4}}, r"model.strides has 4 entries, but levels = 3 gives halvings: 3"),
        ({"model": {"levels": 0, "strides": [[2, 2, 2]]}}, r"model.strides has 1 entries, but levels = 0"),
        ({"model": {"features": [8, 16]}}, r"model.features has 2 entries, but levels = 3 gives resolutions: 4"),
        (
            {"model": {"levels": 0, "kernels": [[1, 2, 3]]}},
            r"model.kernels: \[1, 2, 3\] must be three of 1, 3, 5",
        ),
        ({"model": {"levels": 1, "strides": [[1, 3, 2]]}}, r"model.strides: \[1, 3, 2\] must be three of 1 and 2"),
        ({"model": {"levels": 1, "strides": [[1, 1, 1]]}}, r"model.strides: \[1, 1, 1\] must be .*, and one a 2"),
        ({"model": {"levels": 1, "features": [8, 0]}}, r"model.features = \[8, 0\] must be numbers of 1 to 2048"),
        (
            {"model": {"levels": 0, "kernels": [[3, 3, 3]], "kernel_size": 5}},
            r"kernel_size = 5 .* leave out either",
        ),
        ({"model": {"convolutions": 0}}, r"model.convolutions = 0 is outside 1..8"),
        ({"model": {"down": "average"}}, r"model.down = 'average' is not one of pool, stride"),
        ({"model": {"anisotropy": "some"}}, r"model.anisotropy = 'some' is not one of auto, none"),
        ({"training": {"epochs": 0}}, r"training.epochs = 0 is outside"),
        ({"training": {"learning_rate": -1}}, r"training.learning_rate = -1.0 is outside"),
        ({"training": {"validation": -2}}, r"training.validation = -2 is outside"),
        ({"training": {"accumulate": 0}}, r"training.accumulate = 0 is outside"),
        ({"training": {"clip": -0.5}}, r"training.clip = -0.5 is outside"),
        ({"training": {"checkpoint_levels": 1}}, r"training.checkpoint_levels = 1 must be a list of whole numbers"),
        ({"training": {"checkpoint_levels": [0, "1"]}}, r"training.checkpoint_levels = .* must be a list of whole"),
        ({"training": {"checkpoint_levels": [4]}}, r"training.checkpoint_levels = 4 is no level of this U-Net: 0"),
    ],
)
def test_what_is_wrong_is_named(tables, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(tables, "run.toml")


def test_whole_numbers_are_taken_for_floats():
    config = parse_config({"training": {"learning_rate": 1, "weight_decay": 0}}, "here")
    assert isinstance(config.training.learning_rate, float)
    assert config.training.learning_rate == 1.0


@pytest.mark.parametrize(
    ("content", "message"), [(b"[model", "is not TOML"), (b"#\n#\x80", "is not TOML: no UTF-8 at line 2")]
)
def test_a_file_that_is_not_toml(tmp_path, content, message):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"broken\.toml: {message}"):
        read_config(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


def test_override_takes_what_is_given_and_checks_it():
    config = override(Config(), model={"levels": 2, "norm": None}, training={"epochs": 5})
    assert config == Config(ModelConfig(levels=2), TrainingConfig(epochs=5))
    with pytest.raises(ConfigError, match=r"command line: unknown key model\.level"):
        override(Config(), model={"level": 2})
    with pytest.raises(ConfigError, match="outside"):
        override(Config(), model={"levels": 20})


def test_a_data_set_of_background_alone_is_refused():
    with pytest.raises(ConfigError, match="only one class"):
        ModelConfig().for_data(1, 1)


def test_for_data_fills_in_what_is_open_and_refuses_what_contradicts():
    assert ModelConfig().for_data(2, 4) == ModelConfig(in_channels=2, classes=4)
    assert ModelConfig(in_channels=2, classes=4).for_data(2, 4).classes == 4
    with pytest.raises(ConfigError, match=r"model.classes = 3, but the data set has 4"):
        ModelConfig(classes=3).for_data(1, 4)
    with pytest.raises(ConfigError, match=r"model.in_channels = 2, but the data set has 1"):
        ModelConfig(in_channels=2).for_data(1, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotate": 1.5}, r"augmentation.rotate = 1.5 is outside 0.0..1.0"),
        ({"flip": [0.5]}, r"augmentation.flip = \[0.5\] must be 3 numbers within 0..1"),
        ({"scale_range": [1.4, 0.7]}, r"augmentation.scale_range = \[1.4, 0.7\] falls"),
        ({"gamma_range": [0.0, 1.0]}, r"augmentation.gamma_range = .* must be 2 numbers within 0.05..20"),
        ({"elastic_mm": 30}, r"augmentation.elastic_mm = 30 could fold .* limit is 0.4 of elastic_grid_mm = 40"),
        ({"rotat": 1}, r"unknown key augmentation.rotat; did you mean rotate"),
    ],
)
def test_augmentation_out_of_range_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"augmentation": values}, "here")


def test_presets_are_valid_and_survive_the_round_trip():
    for name, values in PRESETS.items():
        values.check()
        assert preset(name) == values == parse_config({"augmentation": vars(values)}, "here").augmentation
        assert values.anything == (name != "none")
    with pytest.raises(ConfigError, match="--augment fulll: give one of none, light, full"):
        preset("fulll")


def test_a_configuration_of_before_augmentation_is_without():
    assert not parse_config({"model": {}, "training": {}}, "here").augmentation.anything
