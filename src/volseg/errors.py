"""The errors volseg raises on purpose.

Each message carries the value, the limit and the remedy, in one or two lines. The command line turns a
``VolsegError`` into exit code 2 (the input is wrong) and anything else into exit code 1.
"""


class VolsegError(Exception):
    """Something the user gave cannot be used as it is."""


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
