"""An exponential moving average of the weights, for validation and for the model that is kept.

Polyak & Juditsky, "Acceleration of stochastic approximation by averaging" (1992), in its exponential form; the decay
rises as min(decay, (1 + t) / (10 + t)), as in TensorFlow's, so that the first weights are soon forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The average of a model's parameters over the steps; with decay 0 the parameters themselves.

    Every rank keeps its own, with the same bits: they follow from the parameters. Running statistics of batch norm are
    averages already and stay as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters()) if decay > 0 else {}
        self._averages: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Begin with the parameters as they are."""
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step, counted from 0 over the whole run."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name], 1 - decay)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model has the averaged parameters meanwhile."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Memory changes hands, nothing is copied."""
        for name, average in self._averages.items():
            parameter = self._parameters[name]
            parameter.data, self._averages[name] = average, parameter.data

    def state(self) -> dict[str, Tensor]:
        """What goes into a checkpoint, by the parameters' names; empty without averaging."""
        return dict(self._averages)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`, or, where it is empty, from the parameters as they are.

        Raises KeyError or RuntimeError where it does not fit the parameters.
        """
        if not state:
            self.begin()
            return
        for name, average in self._averages.items():
            average.copy_(state[name])
