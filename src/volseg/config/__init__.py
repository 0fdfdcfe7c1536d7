"""The settings of a model and of a training run: one dataclass for each table, read from and written to TOML."""

from volseg.config.augmentation import PRESETS, AugmentationConfig, preset
from volseg.config.data import DataConfig, Readers
from volseg.config.labels import NO_MAP, LabelsConfig, read_label_map
from volseg.config.model import MAX_CHANNELS, MOST_CLASSES, ModelConfig
from volseg.config.multigrid import MultigridConfig
from volseg.config.toml import Config, config_tables, override, parse_config, read_config
from volseg.config.training import TrainingConfig

__all__ = [
    "MAX_CHANNELS", "MOST_CLASSES", "NO_MAP", "PRESETS", "AugmentationConfig", "Config", "DataConfig", "LabelsConfig",
    "ModelConfig", "MultigridConfig", "Readers", "TrainingConfig", "config_tables", "override", "parse_config",
    "preset", "read_config", "read_label_map",
]  # fmt: skip
