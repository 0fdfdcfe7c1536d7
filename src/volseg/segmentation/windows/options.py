"""Whether a scan is segmented whole or by windows, and with which weights: what the user and the model say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.errors import ConfigError
from volseg.geometry import Triple, format_per_axis, format_triple
from volseg.models.stored import ModelCard, fold_path, load_model
from volseg.models.unet import UNet
from volseg.segmentation.windows.sweep import Windows


@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """What the user asks for.

    window  voxels of a window on the network's axes; None: an imported model's own
    step    how far windows lie apart, as a share of the window; None: an imported model's own, else half
    whole   the whole volume at once, whatever the model
    mirror  average over mirror images, on the axes that training mirrored
    folds   "first", "all", or numbers of folds such as "0,2"
    """

    window: Triple | None = None
    step: float | None = None
    whole: bool = False
    mirror: bool = False
    folds: str = "first"

    def windows_for(self, card: ModelCard) -> Windows | None:
        """The windows for a model; None for the whole volume at once. Raises ConfigError where options contradict."""
        origin = card.origin
        if self.whole and self.window is not None:
            raise ConfigError("--whole and --window: give one of the two")
        own = None if origin is None else origin.window
        size = None if self.whole else self.window or own
        if size is None:
            if self.step is not None:
                raise ConfigError("--step: goes with windows; add --window, such as --window 96x96x96")
            return None
        step = self.step if self.step is not None else 0.5 if origin is None else origin.step
        if not 0 < step <= 1:
            raise ConfigError(f"--step {step:g}: must be above 0 and at most 1; 0.5 lets windows overlap by half")
        multiple = card.described.multiple
        if any(side < 1 or side % n for side, n in zip(size, multiple, strict=True)):
            better = tuple(max(n, round(side / n) * n) for side, n in zip(size, multiple, strict=True))
            raise ConfigError(
                f"--window {format_triple(size)}: the network needs multiples of {format_per_axis(multiple)}, such as "
                f"{format_triple(better)}"
            )
        if origin is None:
            return Windows(size=size, step=step, mirrored=self.mirrored_for(card))
        return Windows(
            size=size, step=step, mirrored=self.mirrored_for(card), weighting=origin.weighting, edge=origin.edge
        )  # fmt: skip

    def mirrored_for(self, card: ModelCard) -> tuple[int, ...]:
        """The axes to average over mirror images of. Raises ConfigError where training is not known to mirror any."""
        mirrored = () if card.origin is None or not self.mirror else card.origin.mirrored
        if self.mirror and not mirrored:
            raise ConfigError("--mirror: the model does not say that its training mirrored any axis; leave it out")
        return mirrored


def load_folds(run: Path, folds: str) -> tuple[tuple[UNet, ...], ModelCard]:
    """The models of the folds that `WindowOptions.folds` names, and the card of the first.

    Raises ConfigError for a text that names none, CheckpointError where the run does not have them.
    """
    model, card = load_model(run)
    if folds == "first":
        return (model,), card
    there = () if card.origin is None else card.origin.folds
    if folds == "all":
        wanted: Sequence[int] = there
    else:
        try:
            wanted = [int(number) for number in folds.split(",")]
        except ValueError:
            raise ConfigError(f"--folds {folds}: give all, first, or numbers such as 0,1") from None
    models = tuple(model if fold in there[:1] else load_model(fold_path(run, fold, there))[0] for fold in wanted)
    return models or (model,), card


def warning_of(options: WindowOptions, card: ModelCard) -> str | None:
    """What the user should know of how a model is run; None where there is nothing."""
    origin = card.origin
    if not options.whole or origin is None or origin.window is None:
        return None
    return (
        f"the model learned from patches of {format_triple(origin.window)} voxels: on whole volumes its norms meet "
        "other statistics, and the mask may be worse than by windows; adapt it with volseg train --from RUN"
    )
