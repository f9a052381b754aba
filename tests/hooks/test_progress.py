"""The progress bar, on a terminal of its own."""

import logging
import os
import pty
import re
import sys
import termios
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from trainyard import console
from trainyard.hooks import Hook, Logger, Progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `job` in a process whose terminal is a pty; returns its status and what that terminal received."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "150")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)

    def run(job: Any) -> Any:
        pid, terminal = pty.fork()
        if pid == 0:
            status = 1
            try:
                sys.stdout = os.fdopen(1, "w", closefd=False)
                handler = console.ConsoleHandler()
                logging.getLogger("trainyard").handlers = [handler]
                logging.getLogger("trainyard").setLevel(logging.INFO)
                job()
                status = 0
            except LookupError:
                status = 3
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(status)
        settings = termios.tcgetattr(terminal)
        received = b""
        while True:
            try:
                block = os.read(terminal, 1 << 16)
            except OSError:  # how Linux tells that nobody writes any more
                break
            if not block:
                break
            received += block
        _, status = os.waitpid(pid, 0)
        assert termios.tcgetattr(terminal) == settings
        os.close(terminal)
        return os.waitstatus_to_exitcode(status), received.decode()

    return run


def without_escapes(text: Any) -> Any:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def screen(text: Any) -> Any:
    """The lines that are left on a terminal: rich goes up, clears lines and writes them anew."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part.endswith("K") and part.startswith("\x1b"):
            lines[row] = "" if part[2:-1] == "2" else lines[row][:column]
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def test_a_bar_with_the_numbers_of_the_run(make: Any, on_a_terminal: Any) -> None:
    status, received = on_a_terminal(lambda: make({"progress": Progress(refresh=0)}).train())
    assert status == 0, received
    text = without_escapes(received)
    assert "━" in text
    assert re.search(r"epoch 1/3 ━+╺?━* +1/18 loss \d\.\d+ lr 1\.0e-02 [\d.]+[kM]?/s", text), text
    assert re.search(r"epoch 3/3 ━+ +18/18 ", text)
    assert re.search(r"/s \d:\d\d:\d\d", text), "and the time left"


def test_log_lines_stand_above_the_bar(make: Any, on_a_terminal: Any) -> None:
    hooks = {"progress": Progress(refresh=0), "logger": Logger(1, line_every=0)}
    status, received = on_a_terminal(lambda: make(hooks).train())
    assert status == 0, received
    first, *lines = [line for line in screen(received) if line]
    assert first.startswith("On cpu")
    places = [f"val  epoch {epoch}  iter {iteration}" for epoch, iteration in ((1, 6), (2, 12), (3, 18))]
    assert [line.split("  loss")[0] for line in lines] == places
    assert "eta" not in received, "lines of progress are the bar's"


@pytest.mark.parametrize("fails", [False, True])
def test_the_terminal_is_given_back_as_it_was(make: Any, on_a_terminal: Any, fails: bool) -> None:
    class Fail(Hook):
        def after_train_epoch(self, runner: Any) -> None:
            if fails:
                raise LookupError("mine")

    def job() -> None:
        standard_output = sys.stdout
        try:
            make({"progress": Progress(refresh=0), "fail": Fail()}).train()
        finally:
            assert sys.stdout is standard_output
            assert not console.live
            logging.getLogger("trainyard").info("after", extra={"of_progress": True})

    status, received = on_a_terminal(job)
    assert status == (3 if fails else 0), received
    assert (received.count(HIDE), received.count(SHOW)) == (1, 1)
    assert received.rindex(SHOW) < received.rindex("after")
    _, *left = [line for line in screen(received) if line]
    assert left == ["after"], "the bar is gone, and lines of progress are written again"


def test_it_draws_as_often_as_it_is_told(make: Any, on_a_terminal: Any) -> None:
    drawn = {}
    for refresh in (0, 3600):
        _, received = on_a_terminal(lambda seconds=refresh: make({"progress": Progress(refresh=seconds)}).train())
        drawn[refresh] = len(re.findall(r"loss \d\.", received))
    assert drawn[0] >= 18
    assert drawn[3600] <= 3, "the first, and rich's own last"


def test_a_resumed_run_begins_where_it_was(make: Any, on_a_terminal: Any, interrupt_at: Any, tmp_path: Path) -> None:
    def job() -> None:
        for stop in ({"stop": interrupt_at(9)}, {}):
            checkpoint = {"_target_": "trainyard.hooks.Checkpoint"}
            hooks = {"progress": Progress(refresh=0), "checkpoint": checkpoint, **stop}
            make(hooks, work_dir=tmp_path, resume=True).train()

    status, received = on_a_terminal(job)
    assert status == 0, received
    counts = [int(count) for count in re.findall(r" (\d+)/18 loss", without_escapes(received))]
    assert sorted(set(counts)) == list(range(1, 19))
    assert counts == sorted(counts)


def test_nothing_where_there_is_no_terminal(make: Any, capfd: pytest.CaptureFixture[str]) -> None:
    make({"progress": Progress(refresh=0)}).train()
    assert capfd.readouterr() == ("", "")
    assert not console.live


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a front end shows in the place of the bar, time after time. The tests do not require IPython itself."""
    shown: list[str] = []

    class Output:
        def update(self, data: Any, raw: bool) -> None:
            assert raw
            shown.append(data["text/plain"])

    def display(data: Any, raw: bool, display_id: bool) -> Output:
        output = Output()
        output.update(data, raw)
        return output

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=...), raising=False)
    monkeypatch.setattr(displays, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    return shown


def test_a_notebook_has_a_line_of_text_that_is_replaced(make: Any, notebook: list[str]) -> None:
    for _ in range(2):  # as a cell that is run again
        notebook.clear()
        make({"progress": Progress(refresh=0)}).train()
        assert notebook[0] == notebook[-1] == "", "gone at the end"
        lines = notebook[1:-1]
        assert [re.findall(r"(\d+)/18 loss \d\.\d+ lr 1\.0e-02 ", line)[0] for line in lines] == [
            *map(str, range(1, 19))
        ]
        assert lines[6].startswith("epoch 2/3 ━")
        assert all(len(line) <= 100 and "\n" not in line for line in lines)
    assert not console.live


def test_a_bar_in_a_notebook_ends_with_an_error(make: Any, notebook: list[str]) -> None:
    class Stop(Hook):
        def after_train_epoch(self, runner: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make({"progress": Progress(refresh=0), "stop": Stop()}).train()
    assert notebook[-1] == ""
    assert not console.live
