"""The run in TensorBoard's own files, where the package tensorboard is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError
from volseg.training.log import CLASS

FOLDER = "tensorboard"

_NAMES = {
    "loss": "loss/training", "dice": "Dice/training, soft", "validation_dice": "Dice/held out",
    "learning_rate": "learning rate", "voxels_per_second": "speed/voxels per second", "seconds": "speed/seconds a step",
    "memory_bytes": "memory/bytes of the largest rank",
}  # fmt: skip


def check_tensorboard() -> None:
    """Raise ConfigError where the package is not there."""
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "--tensorboard: needs the package tensorboard, which is not installed; install it with "
            "pip install tensorboard, or leave the option out"
        )


class EventFiles:
    """Writes scalars and pictures to RUN/tensorboard. On the root rank.

    Steps after `step` that an earlier run left are hidden by TensorBoard.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _silent_about_writers(threading.excepthook)
        self._writer: Any = SummaryWriter(str(run / FOLDER), purge_step=step + 1 if step else None)

    def add(self, figures: Mapping[str, Any]) -> None:
        """The figures of a step, by the names of log.csv."""
        for name, value in figures.items():
            title = f"Dice/{name.removeprefix(CLASS)}" if name.startswith(CLASS) else _NAMES.get(name)
            if title is not None and value is not None:
                self._writer.add_scalar(title, value, figures["step"])

    def add_pictures(self, files: Sequence[Path], step: int) -> None:
        """PNG files, each by the case at the end of its name."""
        from matplotlib.image import imread

        for file in files:
            _, _, case = file.stem.split("_", 2)
            self._writer.add_image(f"previews/{case}", imread(file)[..., :3], step, dataformats="HWC")

    def flush(self) -> None:
        """Bring what was added to disk."""
        self._writer.flush()

    def close(self) -> None:
        """The run is over."""
        self._writer.close()


def _silent_about_writers(say: Callable[[Any], object]) -> Callable[[Any], None]:
    """A `threading.excepthook` that leaves out what the package's own threads raise: `EventFiles` gets it too."""

    def hook(failure: Any) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard"):
            say(failure)

    return hook
