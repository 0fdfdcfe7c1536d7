"""How the ranks share a coarse resolution of multigrid training: replicas, and the grid of each.

A coarse volume soon is too small for all ranks: halos and waiting cost more than the smaller blocks spare. So the ranks
form more replicas, of fewer ranks each, as far as that is faster. A batch stays what it is: replicas that it has
no case for have nothing to do.
"""

from __future__ import annotations

from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.networks.description import Network, Normalization
from volseg.partition.ghosts import check_blocks
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.memory import training_memory
from volseg.planning.planner import choose_grid
from volseg.planning.search import Question
from volseg.planning.time_model import step_seconds, training_time


def is_too_small(network: Network, view: Triple) -> bool:
    """Whether a view of (D, H, W) voxels is one voxel at the deepest stage, of which a norm takes no statistics."""
    normed = any(isinstance(node, Normalization) and node.norm != "none" for node in network.nodes)
    return normed and padded_shape(view, network.multiple) == network.multiple


def fastest_sharing(
    shape: Triple, network: Network, ranks: int, batch: int, narrowest: Triple, question: Question | None
) -> tuple[int, Triple]:
    """Replicas, and the grid of each, with which `ranks` ranks make a step on `batch` cases soonest.

    Of equals the one of fewer replicas. Blocks are no thinner than what the network reads beyond them.

    shape      (D, H, W) of the largest volume at this resolution
    narrowest  the smallest side on each axis of any volume, which the grid has to suit too
    question   the machine, for the time model, and a limit of memory, above which there are no more replicas
               than must be; None where the model does not know them: then it is the one of the fewest replicas whose
               grid fits

    Raises PartitionError where not even one rank a replica fits.
    """
    multiple = network.multiple
    best: tuple[float, int, Triple] | None = None
    refused: PartitionError | None = None
    for count in (n for n in range(1, ranks + 1) if ranks % n == 0):
        try:
            dims = choose_grid(shape, ranks // count, multiple, narrowest)
            smallest = Layout.even(padded_shape(narrowest, multiple), dims, multiple)
            check_blocks([smallest.coarser(factor) for factor in network.factors], network.halo)
        except PartitionError as error:
            refused = error
            continue
        if question is None:
            return count, dims
        layout = Layout.even(padded_shape(shape, multiple), dims, multiple)
        layouts = [layout.coarser(factor) for factor in network.factors]
        plan = training_time(network, question.training, layouts, question.profile, question.placing, count)
        seconds = step_seconds([plan] * -(-batch // count))
        if best is not None and seconds >= best[0]:
            continue
        # Fewer replicas have more ranks each, so smaller blocks: those of the first count are the smallest.
        if best is not None and question.limit is not None:
            memory = training_memory(network, question.training, layout, question.placing.threads)
            if memory.peak > question.limit:
                continue
        best = seconds, count, dims
    if best is None:
        assert refused is not None
        raise refused
    return best[1:]
