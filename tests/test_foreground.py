"""A command in the foreground decides what follows from Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainyard.foreground import run_to_end

SAVES = """
import sys, time
try:
    print("started", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(130)
"""


def test_ctrl_c_is_left_to_the_command() -> None:
    code = "import sys; from trainyard.foreground import run_to_end; sys.exit(run_to_end(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-c", SAVES],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate()
    assert text == "saved\n"
    assert process.returncode == 130


def test_sigterm_to_this_process_alone_is_sent_to_the_command() -> None:
    code = "import sys; from trainyard.foreground import run_to_end; sys.exit(run_to_end(sys.argv[1:]))"
    tells = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("started", flush=True)
signal.pause()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-c", tells], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.terminate()
    assert process.stdout.read() == "", "the command has ended"
    assert process.wait(20) == 7
    process.stdout.close()


def test_the_status_of_a_command_that_was_killed() -> None:
    assert run_to_end([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_command_in_place_of_the_process_receives_its_signals(tmp_path: Path, signum: signal.Signals) -> None:
    (tmp_path / "own").mkdir()
    code = (
        "import sys; from pathlib import Path; from trainyard.foreground import replace_process; print('before'); "
        "replace_process(sys.argv[2:], Path(sys.argv[1]))"
    )
    tells = f"""
import os, signal, sys
signal.signal({int(signum)}, lambda *_: sys.exit(7))
print(os.getcwd(), flush=True)
signal.pause()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "own"), sys.executable, "-c", tells],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "before\n"
    assert Path(process.stdout.readline().strip()) == tmp_path / "own"
    process.send_signal(signum)
    assert process.wait(20) == 7
    process.stdout.close()
