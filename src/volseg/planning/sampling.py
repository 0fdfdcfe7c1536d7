"""What a training step sees of a volume, for a plan: all of it or a crop, as it is or augmented."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from volseg.config import AugmentationConfig, Config, TrainingConfig
from volseg.geometry import Triple, halved
from volseg.networks.description import Network
from volseg.partition.agglomeration import Agglomeration
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.memory import MemoryPlan, training_memory, validation_memory
from volseg.planning.sample_memory import sample_bytes, with_sample


@dataclass(frozen=True)
class Sampling:
    """How samples are made; by default they are the volumes as they are.

    crop       (D, H, W) voxels; empty: whole volumes
    validated  whether whole volumes are segmented now and then, where steps see crops
    """

    crop: tuple[int, ...] = ()
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    validated: bool = False

    @classmethod
    def of(cls, settings: Config) -> Sampling:
        """That of a run's settings."""
        return cls(settings.data.crop, settings.augmentation, settings.training.validation > 0)

    def view(self, volume: Triple) -> Triple:
        """The sides of what a step sees; no side is larger than the volume's."""
        if not self.crop:
            return volume
        d, h, w = (min(side, length) for side, length in zip(self.crop, volume, strict=True))
        return d, h, w

    def halved(self, level: int) -> Sampling:
        """Of volumes halved `level` times: a crop then shows as much of the body in fewer voxels."""
        return replace(self, crop=halved((self.crop[0], self.crop[1], self.crop[2]), level)) if self.crop else self

    def memory(
        self, network: Network, training: TrainingConfig, layout: Layout, volume: Triple, threads: int,
        stages: Agglomeration,
    ) -> MemoryPlan:  # fmt: skip
        """What a rank needs, the sample's making included: of a step, or of validation if that needs more.

        layout  of the padded view
        """
        cropped = self.view(volume) != volume
        sample = sample_bytes(self.augmentation, layout, volume, network.in_channels, threads, cropped)
        plan = with_sample(training_memory(network, training, layout, threads, stages), sample)
        if not (cropped and self.validated):
            return plan
        whole = Layout.even(padded_shape(volume, network.multiple), layout.dims, network.multiple)
        return max(plan, validation_memory(network, training, whole, threads, stages), key=lambda one: one.peak)


WHOLE = Sampling()
"""Whole volumes, as they are."""
