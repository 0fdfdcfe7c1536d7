"""Any torch module as a description, by `torch.export`: `describe`, `describe_archive`, `state_for`."""

from volseg.models.exported.archive import describe_archive
from volseg.models.exported.door import describe
from volseg.models.exported.weights import state_for, state_from

__all__ = ["describe", "describe_archive", "state_for", "state_from"]
