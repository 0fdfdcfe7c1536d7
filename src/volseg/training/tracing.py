"""A trace of some steps of training."""

from __future__ import annotations

from volseg.distributed.trace import Trace
from volseg.events import Caution, Listener, Message
from volseg.training.job import TrainingJob
from volseg.training.resolution import Resolution


class StepTrace:
    """Records the steps that the job asks for: the first few after one that warms up, or that one where there is no
    other. Without a trace in the job it does nothing.

    done, steps  steps that earlier runs made, and those of all
    """

    def __init__(self, job: TrainingJob, finest: Resolution, done: int, steps: int, listen: Listener) -> None:
        self._job, self._replicas, self._grid, self._listen = job, finest.replicas, finest.grid, listen
        self._first = min(done + 1, steps - 1)
        self._last = min(self._first + job.trace_steps, steps) - 1
        self._trace: Trace | None = None

    def before(self, step: int) -> None:
        """A step is about to begin. Collective."""
        if self._job.trace is not None and step == self._first:
            self._trace = Trace(self._replicas.world)

    def after(self, step: int) -> None:
        """A step, with all that came after it, is over. Collective. Raises as `Trace.write` does."""
        if self._trace is None or step != self._last:
            return
        assert self._job.trace is not None
        replica = self._replicas.number if self._replicas.count > 1 else None
        lost = self._trace.write(self._job.trace, "train", self._grid, replica)
        self._trace = None
        numbers = f"{self._first + 1}" + (f" to {self._last + 1}" if self._last > self._first else "")
        self._listen(Message(f"wrote {self._job.trace}: step {numbers}; open it in ui.perfetto.dev"))
        if lost:
            self._listen(Caution(f"{self._job.trace}: {lost} pieces of work were too many to keep"))
