"""Nodes as an export gives them, brought into the form in which the program's kernels know them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from volseg.geometry import Triple
from volseg.models.exported.walk import Walk
from volseg.networks.description import IMAGE, ONES, Convolution, Head, MaxPool, Node, Normalization


def tidy(walk: Walk, logits: str, deep: list[str]) -> list[Node]:
    """The nodes that the outputs need, in order, the heads among them.

    logits  the node that gives them
    deep    nodes that give the module's other outputs
    """
    nodes = dict(walk.nodes)
    _merge(nodes, {logits, *deep})
    heads = _heads(nodes, walk.sides, logits, deep)
    nodes = _needed(nodes, heads)
    return _with_readings(nodes)


def _merge(nodes: dict[str, Node], outputs: set[str]) -> None:
    """A norm, the activation behind it and the dropout behind that become one node where nobody reads in between."""
    counts = Counter(name for node in nodes.values() for name in node.reads)
    for name, node in list(nodes.items()):
        before = nodes.get(node.reads[0])
        if not isinstance(node, Normalization) or not isinstance(before, Normalization):
            continue
        merged = _joined(before, node)
        if merged is None or counts[before.name] != 1 or before.name in outputs:
            continue
        nodes[name] = replace(merged, name=name)
        del nodes[before.name]


def _joined(first: Normalization, second: Normalization) -> Normalization | None:
    """Two in turn as one; None where one node cannot say them.

    A dropped channel is a factor that is not negative, which a (leaky) ReLU lets pass: so it may come before that.
    """
    if second.norm != "none" or (second.activates and first.activates) or (second.dropping and first.dropping):
        return None
    if second.activates and first.dropping and second.activation != "leaky_relu":
        return None
    active, dropping = (second if second.activates else first), (second if second.dropping else first)
    return replace(
        first, slope=active.slope, activation=active.activation, dropout=dropping.dropout, dropping=dropping.dropping
    )


def _heads(nodes: dict[str, Node], sides: Mapping[str, Triple], logits: str, deep: list[str]) -> list[str]:
    """Make heads of the outputs that are 1x1x1 convolutions; another output that is the logits gets one behind it.

    Raises nothing: further outputs that are no 1x1x1 convolution of as many channels at a stage of their own are left.
    """
    counts = Counter(name for node in nodes.values() for name in node.reads)
    if _is_head(nodes, logits, counts):
        nodes[logits] = _head(nodes[logits], training=False)
    else:
        last = nodes[logits] if logits != IMAGE else None
        channels = 0 if last is None else last.channels
        name = f"{logits}, logits"
        nodes[name] = Head(name, (logits,), -1, channels, "as_logits", passes=True)
        logits = name
    heads, taken = [logits], {sides.get(nodes[logits].reads[0])}
    for name in deep:
        if (
            _is_head(nodes, name, counts)
            and sides[name] not in taken
            and nodes[name].channels == nodes[logits].channels
        ):
            nodes[name] = _head(nodes[name], training=True)
            taken.add(sides[name])
            heads.append(name)
    return heads


def _is_head(nodes: Mapping[str, Node], name: str, counts: Counter[str]) -> bool:
    node = nodes.get(name)
    single = isinstance(node, Convolution) and node.kernel == node.stride == ONES and node.bias
    return bool(single and node and len(node.reads) == 1 and not counts[name])


def _head(node: Node, *, training: bool) -> Head:
    assert isinstance(node, Convolution)
    return Head(node.name, node.reads, node.stage, node.channels, node.module, training)


def _needed(nodes: Mapping[str, Node], heads: list[str]) -> dict[str, Node]:
    """Those that the heads are made from."""
    wanted: set[str] = set()
    for name, node in reversed(list(nodes.items())):
        if name in wanted or name in heads:
            wanted |= {name, *node.reads}
    return {name: node for name, node in nodes.items() if name in wanted}


def _with_readings(nodes: Mapping[str, Node]) -> list[Node]:
    """Max pooling reads its tensor through a normalization; one that has none reads it through one that does nothing.

    Heads come after all other nodes of theirs that the module computes before its end, as it has them.
    """
    listed: list[Node] = []
    for node in nodes.values():
        before = nodes.get(node.reads[0])
        if isinstance(node, MaxPool) and before is not None and not isinstance(before, Normalization):
            through = f"{before.name}, as it is"
            if all(other.name != through for other in listed):
                listed.append(Normalization(through, (before.name,), -1, before.channels, "none", 1.0))
            node = replace(node, reads=(through,))
        listed.append(node)
    return listed
