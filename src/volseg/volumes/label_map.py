"""Labels merged, dropped, chosen and renamed as they are read: a mask with the values of a user's own labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from volseg.config.labels import BACKGROUND, IGNORED, LabelsConfig
from volseg.errors import VolumeError, first_few
from volseg.geometry import Box
from volseg.volumes.volume import Volume


@dataclass(frozen=True)
class LabelMap:
    """What becomes of the values that files hold.

    labels  name -> value of the labels that come out, background first
    ignore  value of what does not count; None: all does
    values  file's value -> value, for all values that a file may hold
    """

    labels: Mapping[str, int]
    ignore: int | None
    values: Mapping[int, int]
    _table: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table = np.full(max(self.values) + 1, -1, dtype=np.int32)
        for value, other in self.values.items():
            table[value] = other
        object.__setattr__(self, "_table", table)

    def apply(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Labels [...] of a file's values [...], uint16. Raises VolumeError where a value is not known."""
        whole = np.clip(stored, -1, len(self._table)).astype(np.int64)
        known = (whole >= 0) & (whole < len(self._table)) & (whole == stored)
        whole[~known] = 0
        labels: np.ndarray = self._table[whole]
        wrong = ~known | (labels < 0)
        if wrong.any():
            raise VolumeError(
                f"{path}: holds {first_few([f'{value:g}' for value in np.unique(stored[wrong])])}, which the data set "
                f"does not name ({first_few([str(value) for value in sorted(self.values)], 12)}); add them to its "
                "labels, or correct the file"
            )
        return labels.astype(np.uint16)


def label_map(
    config: LabelsConfig, labels: Mapping[str, int], ignore: int | None, where: Path
) -> LabelMap:  # fmt: skip
    """What `config` makes of a data set's labels.

    labels  name -> value as the data set has them
    ignore  its value of what does not count
    where   for messages

    Raises VolumeError where `config` names a value or a label that the data set does not have.
    """
    known = {**labels, **({} if ignore is None else {IGNORED: ignore})}
    made: dict[str, int] = {BACKGROUND: 0}
    values, homes = dict.fromkeys(known.values(), 0), dict[int, str]()
    ignored = {ignore} - {None}
    for name, several in config.rows:
        own = [_value(name, value, known, where) for value in several]
        for value in own:
            if value in homes:
                raise VolumeError(
                    f"[labels]: {homes[value]} and {name} both have {value} of {where}; leave it in one of them"
                )
            homes[value] = name
        if name.lower() == IGNORED:
            ignored |= set(own)
            continue
        made[name] = len(made)
        values |= dict.fromkeys(own, made[name])
    left = {value for value in ignored if value is not None and (value not in homes or homes[value].lower() == IGNORED)}
    values |= dict.fromkeys(left, len(made))
    return LabelMap(made, len(made) if left else None, values)


def _value(name: str, value: int | str, known: Mapping[str, int], where: Path) -> int:
    number = known.get(value) if isinstance(value, str) else value
    if number is None or number not in known.values() or number == 0:
        has = first_few([f"{other} ({n})" for other, n in known.items() if n], 12)
        raise VolumeError(f"[labels] {name}: {where} has no label {value!r}; it has {has}")
    return number


class MappedLabels(Volume):
    """A mask through a `LabelMap`, as it is read."""

    def __init__(self, mask: Volume, change: LabelMap) -> None:
        self.path, self.space, self.format, self.audit = mask.path, mask.space, mask.format, mask.audit
        self.whole_slices, self.rising_slices = mask.whole_slices, mask.rising_slices
        self.dtype = np.dtype(np.uint16)
        self._mask, self._change = mask, change

    def read(self, box: Box) -> np.ndarray:
        return self._change.apply(self._mask.read(box), self.path)

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """As the mask's own, in the order of its file."""
        for box, values in self._mask.slabs(depth):
            yield box, self._change.apply(values, self.path)

    def close(self) -> None:
        self._mask.close()
