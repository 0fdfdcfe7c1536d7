"""The errors volseg raises on purpose.

Each message carries the value, the limit and the remedy, in one or two lines. The command line turns a
``VolsegError`` into exit code 2 (the input is wrong) and anything else into exit code 1.
"""

from collections.abc import Sequence

LONGEST_LINE = 1000


class VolsegError(Exception):
    """Something the user gave cannot be used as it is."""

    def __str__(self) -> str:
        """The message, fit for a terminal, whatever the file that it quotes holds.

        Control characters are escaped, and of a very long line the middle is left out.
        """
        lines = super().__str__().split("\n")
        return "\n".join(_shortened("".join(map(_printable, line))) for line in lines)


def _printable(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def _shortened(line: str) -> str:
    half = LONGEST_LINE // 2
    return line if len(line) <= LONGEST_LINE else f"{line[:half]} [...] {line[-half:]}"


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ConfigError(VolsegError):
    """A configuration value, option or model description is wrong."""


class PartitionError(VolsegError):
    """A process grid, block or layer cannot be partitioned as asked."""


class VolumeError(VolsegError):
    """A volume cannot be read, written or used faithfully."""


class CheckpointError(VolsegError):
    """A checkpoint is missing, damaged or does not fit."""


class LaunchError(VolsegError):
    """The MPI launcher and the MPI library do not belong together."""


def first_few(names: Sequence[str], most: int = 3) -> str:
    """``a, b, c and 4 more``, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
