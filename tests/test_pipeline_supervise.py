"""A server in the foreground: its exit code is ours, and whatever ends us leaves none of its processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pipeline import supervise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and process groups as on Linux")

# A server with a process of its own that heeds nothing, as vLLM's engine while it loads.
LOADING = """
import signal, subprocess, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"])
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""
LISTENING = """
import signal, socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
def end(*_):
    print("last words", file=sys.stderr, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print("up", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run():
    """Start a program under supervision; for one that goes on, wait until it says that it is up."""
    started = []

    def start(program: str, wait: bool = True) -> tuple[subprocess.Popen, list[psutil.Process]]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        command = [sys.executable, supervise.__file__, "127.0.0.1", port, sys.executable, "-c", program, port]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
        started.append(process)
        assert process.stderr is not None
        if not wait:
            return process, []
        assert process.stderr.readline() == "up\n"
        return process, psutil.Process(process.pid).children(recursive=True)

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=30)


def gone(processes: list[psutil.Process]) -> bool:
    deadline = time.monotonic() + 20
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize(
    ("program", "code"),
    [("", 0), ("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + 9)],
)
def test_the_exit_code_is_handed_on(run, program, code):
    process, _ = run(program, wait=False)
    assert process.wait(timeout=60) == code


def test_what_it_says_is_said(run):
    process, _ = run("import sys; print('refused', file=sys.stderr); sys.exit(2)", wait=False)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("refused\n", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_server_that_loads_is_killed_at_once_with_its_processes(run, number):
    process, children = run(LOADING)
    assert len(children) == 2
    os.killpg(process.pid, number)  # as a terminal sends it
    assert process.wait(timeout=20) == 128 + number
    assert gone(children)


def test_a_server_that_listens_ends_in_order_and_its_last_words_are_dropped(run):
    process, children = run(LISTENING)
    os.killpg(process.pid, signal.SIGINT)
    assert (process.communicate(timeout=20)[1], process.returncode) == ("", 7)
    assert gone(children)


def test_a_second_signal_does_not_wait(run):
    process, children = run(LISTENING.replace("sys.exit(7)", "time.sleep(60)"))
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) == 128 + signal.SIGINT
    assert gone(children)
