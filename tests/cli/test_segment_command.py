"""volseg segment, as typed: what it says of the memory plan."""

import pytest

from volseg.cli.app import run
from volseg.distributed.time_account import TimeAccount
from volseg.planning.memory import MemoryPlan
from volseg.program.kinds import Kind
from volseg.program.schedule import Schedule
from volseg.segmentation import segment as segmentation
from volseg.segmentation.limit import Choice
from volseg.segmentation.report import SegmentationReport
from volseg.volumes.audit import Audit


@pytest.mark.parametrize(("planned", "warned"), [(100, False), (95, False), (80, True), (120, True)])
def test_a_memory_plan_off_by_more_than_a_tenth_is_warned_of(monkeypatch, capsys, planned, warned):
    box, spacing = (4, 4, 4), (1.0, 1.0, 1.0)
    plan = MemoryPlan(planned, 0, 0, (0,), "")
    choice = Choice(Schedule.IN_PLACE, plan, 99, False, "", {})
    time = TimeAccount(dict.fromkeys(Kind, (0.0, 0.0)))
    report = SegmentationReport(
        files=(), statistics=(), removed=(), shape=box, seen=box, spacing=spacing, grid=(1, 1, 2), seconds=1.0,
        peaks=(90, 100), choice=choice, phases={}, audit=Audit(), placement=[], communication={}, time=time,
        network_seconds=0.0, network_planned=(None, None),
    )  # fmt: skip
    monkeypatch.setattr(segmentation, "segment", lambda *arguments: report)
    assert run(["segment", "scan.nii", "--no-progress"]) == 0
    assert ("planned and measured memory differ by 20%" in capsys.readouterr().err) == warned
