"""Which of the ways a run begins in is the one that was asked for."""

from __future__ import annotations

from dataclasses import replace

from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.events import Listener, Message
from volseg.models.stored import read_card
from volseg.networks.deep_supervision import without_training_heads
from volseg.training.beginning import Beginning
from volseg.training.earlier_run import from_run
from volseg.training.job import TrainingJob
from volseg.training.keeping import newest_whole
from volseg.training.other_network import from_module, from_plans
from volseg.volumes.dataset import Dataset


def begin(job: TrainingJob, dataset: Dataset, communicator: Communicator, listen: Listener) -> Beginning:
    """What the run begins, or goes on, with. Collective.

    Raises VolsegError, on all ranks, where that cannot be read or does not suit the data set.
    """
    config = job.config
    if job.proceed:
        path = newest_whole(job.run, communicator, listen)
        with communicator.together():
            card = read_card(path)
        config = replace(config, model=_suited(config.model, dataset))
        network, count = without_training_heads(card.described), len(dataset.channel_names)
        schemes = card.schemes if len(card.schemes) == count else ()  # else it is another data set, as is said later
        return Beginning(config=config, network=network, schemes=schemes, origin=card.origin, path=path)
    if job.begins is None:
        return Beginning(config=replace(config, model=_suited(config.model, dataset)))
    if config.model != ModelConfig():
        listen(Message(f"the network is that of {job.begins}: what the settings say of [model] is not used"))
    with communicator.together():
        if job.begins.run is not None:
            begun, said = from_run(job.begins.run, config, dataset)
        elif job.begins.module is not None:
            begun, said = from_module(job.begins, config, dataset)
        else:
            begun, said = from_plans(job.begins, config, dataset)
    listen(Message(said))
    return begun


def _suited(model: ModelConfig, dataset: Dataset) -> ModelConfig:
    return model.for_data(len(dataset.channel_names), len(dataset.outputs), bool(dataset.regions))
