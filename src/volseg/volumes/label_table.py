"""Names and colours of labels, which travel with a mask wherever its format can carry them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from volseg.volumes.regions import Region

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelTable:
    """The labels of a mask.

    names    name -> value, background (0) included or not
    colours  value -> (red, green, blue), 0 to 255; a label without one gets `default_colour`
    regions  overlapping sets of the labels, where they are made up of such
    """

    names: Mapping[str, int]
    colours: Mapping[int, Colour] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()

    @property
    def foreground(self) -> tuple[tuple[int, str], ...]:
        """(value, name) by value, without the background."""
        return tuple(sorted((value, name) for name, value in self.names.items() if value != 0))

    @property
    def ordered(self) -> tuple[str, ...]:
        """All names by value."""
        return tuple(sorted(self.names, key=lambda name: self.names[name]))

    def colour(self, value: int) -> Colour:
        """The colour of a label."""
        return self.colours.get(value, default_colour(value))


def table_of(rows: Iterable[tuple[int, str, Colour | None]]) -> LabelTable:
    """A table from (value, name, colour) as a file gives them; a name met before gets its value added."""
    names: dict[str, int] = {}
    colours: dict[int, Colour] = {}
    for value, name, colour in rows:
        names[name if name not in names else f"{name} {value}"] = value
        if colour is not None:
            colours[value] = colour
    return LabelTable(names, colours)


def same_name_warning(rows: Iterable[tuple[int, str]], table: LabelTable, what: str) -> list[str]:
    """A warning for each name that several of `rows` (value, name) have in the file: by which names `table` has them.

    what  they are, in words: ROIs, segments
    """
    told = {value: name for name, value in table.names.items()}
    by_name: dict[str, list[str]] = {}
    for value, name in rows:
        by_name.setdefault(name, []).append(told[value])
    return [
        f"{len(names)} {what} are called {name}: kept apart, as {', '.join(names)}"
        for name, names in by_name.items() if len(names) > 1
    ]  # fmt: skip


# Bright on grey, told apart by those who see red and green alike (after Okabe and Ito, and Tol's "light").
_COLOURS: tuple[Colour, ...] = (
    (255, 111, 97), (79, 195, 247), (255, 213, 79), (129, 230, 160), (206, 147, 216), (255, 169, 77), (244, 143, 177),
    (77, 208, 196), (197, 224, 99), (159, 168, 255),
)  # fmt: skip


def default_colour(value: int) -> Colour:
    """A colour for a label that has none: the first ten are chosen, after them hues a golden section apart."""
    from colorsys import hsv_to_rgb

    if value == 0:
        return (0, 0, 0)
    if value <= len(_COLOURS):
        return _COLOURS[value - 1]
    red, green, blue = hsv_to_rgb((value * 0.618033988749895) % 1.0, 0.65 + 0.25 * (value % 2), 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
