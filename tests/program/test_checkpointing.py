"""What backward makes again, and that less is held for it."""

from __future__ import annotations

from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.architectures import described
from volseg.partition.agglomeration import NONE
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares
from volseg.planning.training_pass import TrainingPass
from volseg.program.build import train_program
from volseg.program.checkpointing import made_again
from volseg.program.ops import Add, Convolve

RESIDUAL = ModelConfig(in_channels=1, classes=3, base_channels=16, levels=4, encoder="residual")
SHAPE: Triple = (96, 96, 96)


def test_a_residual_encoder_keeps_one_tensor_of_a_large_block() -> None:
    """First convolutions of the two finest stages, all projections, every other sum; nothing of the decoder."""
    names = made_again(described(RESIDUAL), ())
    assert {"encoder 0.1", "encoder 0.1 skip", "encoder 0.2 sum", "encoder 1.1", "encoder 1.3", "encoder 1.5"} <= names
    assert {"encoder 1.2 sum", "encoder 1.6 sum", "encoder 2.2 sum", "encoder 2.6 sum"} <= names
    assert not names & {"encoder 0.2", "encoder 1.2", "encoder 1.4 sum", "encoder 2.1", "decoder 0.1", "decoder 1.1"}


def test_a_sum_that_overwrites_its_first_term_is_kept() -> None:
    """No norm reads a SegResNet's second convolutions: nothing of them is kept, and the sums are not made again."""
    network = described(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2, architecture="segresnet"))
    assert not any(name.endswith("sum") for name in made_again(network, ()))


def test_the_stages_asked_for_are_made_again_too() -> None:
    names = made_again(described(RESIDUAL), {2})
    assert {"encoder 2.1", "encoder 2.3", "decoder 2.1"} <= names
    assert "encoder 3.1" not in names


def test_a_projection_is_made_for_the_sum_and_again_for_its_gradient() -> None:
    """It is given back in between, while all coarser stages go backward."""
    steps = train_program(described(RESIDUAL)).backward
    labels = [step.label for step in steps if isinstance(step.op, (Convolve, Add))]
    finest = [label for label in labels if label.startswith("encoder 0")]
    assert finest[:2] == ["encoder 0.1 skip, again", "encoder 0.2 sum, again"]
    assert finest[2:].count("encoder 0.1 skip, again") == 1
    after_sum = next(step for step in steps if step.label == "encoder 0.2 sum, again" and isinstance(step.op, Add))
    assert "encoder 0.1 skip" in {tensor.name for tensor in after_sum.frees}


def test_a_training_step_of_a_residual_encoder_holds_at_most_500_bytes_a_voxel() -> None:
    """nnU-Net's ResEnc has 1, 3, 4, 6, 6 blocks; keeping all of it took 1495 bytes."""
    network = described(RESIDUAL)
    share = busy_shares(Layout.even(SHAPE, (1, 1, 1)), network.factors, NONE, halo=network.halo)[0]
    held = TrainingPass(network, train_program(network), share)
    assert held.tensors / prod(SHAPE) <= 500
