"""A command in the foreground decides what follows from Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from trainyard.foreground import run_to_end

SAVES = """
import sys, time
print("started", flush=True)
try:
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


def test_the_status_of_a_command_that_was_killed() -> None:
    assert run_to_end([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137
