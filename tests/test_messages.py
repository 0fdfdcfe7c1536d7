"""The log of a run's messages: nothing before it may be written, everything after, and no failure of it ends a job."""

from volseg.errors import VolsegError
from volseg.events import Caution, Message, Progress
from volseg.messages import MESSAGES, MessageLog


def texts(folder):
    return [line[20:] for line in (folder / MESSAGES).read_text(encoding="utf-8").splitlines()]


def test_what_came_before_the_beginning_is_written_then(tmp_path):
    heard = []
    log = MessageLog(tmp_path, heard.append)
    log.listen(Message("first"))
    log.failed(VolsegError("refused"))  # before anything is begun: a folder that is refused is left as it was
    assert list(tmp_path.iterdir()) == []
    log.begin("volseg train", anew=True)
    log.listen(Caution("two\nlines"))
    for done in range(21):
        log.listen(Progress("train", done, 20, "steps"))
    log.failed(VolsegError("no such scan"))
    written = texts(tmp_path)
    assert written[:4] == ["volseg train", "first", "warning: two", "lines"]
    assert written[-1] == "error: no such scan"
    assert len([line for line in written if line.startswith("train ")]) == 11
    assert heard[0] == Message("first")


def test_an_error_that_is_a_bug_is_kept_with_its_traceback(tmp_path):
    log = MessageLog(tmp_path)
    log.begin("volseg", anew=True)
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        log.failed(error)
    assert "Traceback" in texts(tmp_path)[1]
    assert texts(tmp_path)[-1].endswith("ZeroDivisionError: by zero")


def test_a_log_that_cannot_be_written_is_said_once_and_tried_again(tmp_path):
    heard = []
    folder = tmp_path / "run"
    log = MessageLog(folder, heard.append)
    log.begin("volseg", anew=False)
    log.listen(Message("a"))
    assert [type(event) for event in heard] == [Caution, Message]
    assert str(folder / MESSAGES) in heard[0].text
    folder.mkdir()
    log.listen(Message("b"))
    assert texts(folder) == ["volseg", "a", "b"]


def test_a_run_that_goes_on_adds_to_it_and_other_ranks_write_nothing(tmp_path):
    MessageLog(tmp_path).begin("first", anew=True)
    MessageLog(tmp_path).begin("second", anew=False)
    other = MessageLog(tmp_path, writes=False)
    other.begin("a rank", anew=False)
    other.listen(Message("a rank"))
    assert texts(tmp_path) == ["first", "second"]
    MessageLog(tmp_path).begin("anew \udcc3\udcb6 \ud800", anew=True)  # a path's bytes under an ASCII locale; JSON's
    assert texts(tmp_path) == [r"anew \udcc3\udcb6 \ud800"]
