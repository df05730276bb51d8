"""Programs stay in their jail, in every tier this machine has."""

import glob
import json
import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rewards.sandbox.checkers import Tokens
from rewards.sandbox.errors import SandboxError, SandboxUnavailable
from rewards.sandbox.judge import CallTest, UnitTest, judge
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox, Slot
from rewards.sandbox.result import Verdict
from rewards.sandbox.running_job import Job, RunningJob, sealed
from rewards.sandbox.tiers import TIERS, choose_tier
from rewards.sandbox.zygote_client import Launch, drive
from tests.sandbox_attacks import FUNCTIONS, PROGRAMS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")

LIMITS = Limits(cpu_s=5.0, wall_s=60.0, memory_mb=256, threads=16, space_mb=32, stdout_kb=64)
IMPATIENT = replace(LIMITS, cpu_s=0.5, wall_s=1.5)  # for those that would never end
ANSWER = "31337"
KINDS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]


@pytest.fixture(scope="module", params=TIERS)
def box(request):
    try:
        sandbox = Sandbox(request.param, workers=1)
    except SandboxUnavailable as reason:
        pytest.skip(str(reason))
    with sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What attackers look for: a readable secret, open ports, a process of the same user."""
    folder = tmp_path_factory.mktemp("host")
    (folder / "secret").write_text("SECRET")
    (folder / "secret").chmod(0o666)
    victim = subprocess.Popen(["sleep", "600"])
    name = f"r1-test-{os.getpid()}"
    os.environ["R1_TEST_TOKEN"] = "SECRET"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0" + name)
        unix.listen()
        yield {
            "secret_file": str(folder / "secret"),
            "own_file": str(folder / "secret"),
            "port": tcp.getsockname()[1],
            "unix": name,
            "judge": os.getpid(),
            "victim": victim.pid,
            "variable": "R1_TEST_TOKEN",
            "answer": ANSWER,
        }
        assert victim.poll() is None, "a job has killed a process of the host"
    victim.kill()
    victim.wait()
    del os.environ["R1_TEST_TOKEN"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_contained(box, host, name):
    expected, source = PROGRAMS[name]
    stdin = json.dumps(host) + "\n" + ("x" * (3 << 20) if "big input" in name else "")
    result = box.run(Program("python", source), stdin.encode(), IMPATIENT if "TLE" in expected else LIMITS)
    verdict = result.failure or ("WA" if Tokens()(ANSWER.encode(), result.stdout) else "AC")
    assert verdict in expected, result
    assert b"ESCAPED" not in result.stdout and b"SECRET" not in result.stdout


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_without_the_answer_is_not_paid(box, name):
    judgement = judge(box, Program("python", FUNCTIONS[name]), [CallTest("solve", (7,), "secret")], limits=LIMITS)
    assert judgement.verdict in set(Verdict) - {Verdict.AC, Verdict.IE}, judgement.tests[0].detail
    assert not os.path.exists("/tmp/r1-escaped")


def test_nothing_of_a_job_reaches_the_next(box):
    box.run(
        Program("python", "import os, sys, builtins\nopen('left', 'w').close()\nos.mkdir('folder')\nbuiltins.left = 1")
    )
    seen = box.run(Program("python", "import builtins, os\nprint(os.listdir('.'), hasattr(builtins, 'left'))"))
    assert seen.stdout == b"[] False\n"


def test_a_job_cannot_spoil_the_place_of_the_next(box):
    box.run(Program("python", "import os\nos.mkdir('a')\nos.chmod('a', 0)\nos.chmod('.', 0)"))
    assert box.run(Program("python", "open('x', 'w').close(); print(1)")).stdout == b"1\n"


def test_a_job_does_not_find_the_input_of_the_one_before(box):
    reads = Program("python", "print(len(open('/dev/stdin').read()), end=' ')\nprint(len(open(0).read()))")
    sizes = [box.run(reads, b"x" * size).stdout for size in (5 << 20, 3, 0)]
    assert sizes == [b"5242880 5242880\n", b"3 3\n", b"0 0\n"]


def test_as_many_threads_as_allowed_can_run_at_once(box):
    source = "import threading\nmeet = threading.Barrier(61)\n"
    source += "def work(): held = [bytearray(1000) for _ in range(100)]; meet.wait()\n"
    source += "for _ in range(60): threading.Thread(target=work).start()\nmeet.wait(); print('all')"
    result = box.run(Program("python", source))
    assert result.stdout == b"all\n", result


def test_forked_jobs_do_not_share_random_numbers(box):
    first, second = (box.run(Program("python", "import random\nprint(random.random())")).stdout for _ in range(2))
    assert first != second


def test_limits_of_the_judge_stay_and_nothing_is_left():
    before, others = [resource.getrlimit(kind) for kind in KINDS], set(jails_of(os.getpid()))
    folders = set(glob.glob(f"/tmp/r1-sandbox-{os.getpid()}-*"))
    with Sandbox(workers=2) as box:
        box.run(Program("python", "open('x', 'w').close()"))
        open_now = psutil.Process().num_fds()
        for _ in range(30):
            box.run(Program("python", "print(input())"), b"hi\n")
        assert psutil.Process().num_fds() == open_now
    assert [resource.getrlimit(kind) for kind in KINDS] == before
    assert set(jails_of(os.getpid())) == others
    assert set(glob.glob(f"/tmp/r1-sandbox-{os.getpid()}-*")) == folders


def test_a_killed_zygote_is_replaced():
    others = set(jails_of(os.getpid()))
    with Sandbox(workers=1) as box:
        assert box.run(Program("python", "print(1)")).failure is None
        for jail in set(jails_of(os.getpid())) - others:
            jail.kill()
        assert box.run(Program("python", "print(1)")).stdout == b"1\n"


def test_a_killed_judge_leaves_no_process():
    program = (
        "from rewards.sandbox.pool import Program, Sandbox\n"
        "box = Sandbox(workers=1)\n"
        "import psutil; print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)\n"
        "box.run(Program('python', 'import time\\ntime.sleep(1000)'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment()) as judge_process:
        assert judge_process.stdout is not None
        pids = list(map(int, judge_process.stdout.readline().split()))
        judge_process.kill()
    assert pids
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert not [process for process in alive if process.status() != "zombie"]


def test_many_threads_get_their_own_results():
    with Sandbox(workers=2) as box:
        results: dict[int, bytes] = {}

        def run(number: int) -> None:
            results[number] = box.run(Program("python", "print(int(input()) ** 2)"), b"%d\n" % number).stdout

        threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: b"%d\n" % number**2 for number in range(20)}


def test_an_interrupted_run_does_not_stall_the_next(monkeypatch):
    with Sandbox(workers=1) as box:
        open_now = psutil.Process().num_fds()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunningJob, "_take_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            box.run(Program("python", "print(1, flush=True)\nwhile True: pass"), limits=IMPATIENT)
        result = box.run(Program("python", "print(1)"))
        assert result.stdout == b"1\n" and result.wall_s < 30
        assert psutil.Process().num_fds() <= open_now


def test_a_zygote_runs_the_job_that_came_while_another_ran():
    payload = sealed(b"import sys, time\ntime.sleep(1000 * (input() == 'sleep'))\nprint('ran')")
    slot = Slot(Launch(tier=choose_tier("auto")))
    try:
        first, second = (
            slot.zygote().begin(Job(mode="script", payload=payload, limits=LIMITS, stdin=text))
            for text in (b"sleep\n", b"run\n")
        )
        first.drop()
        drive([second])
        assert second.result.stdout == b"ran\n"
    finally:
        slot.close()
        os.close(payload)


def test_without_descriptors_a_run_is_an_internal_error_and_leaks_none():
    with Sandbox(workers=1) as box:
        before = psutil.Process().num_fds()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            for room in (1, 3, 5, 8):
                free = max(map(int, os.listdir("/proc/self/fd"))) + 1
                held = [os.open("/dev/null", os.O_RDONLY) for _ in range(free - psutil.Process().num_fds())]
                resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, limits[1]))
                results = [judge(box, Program("python", "x = 1"), [CallTest("f", (), 1), UnitTest("f()")])]
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                assert {test.verdict.value for test in results[0].tests} <= {"IE", "RE"}
                for descriptor in held:
                    os.close(descriptor)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert box.run(Program("python", "print(1)")).stdout == b"1\n"
        assert psutil.Process().num_fds() <= before + 1  # the zygote for tests


def test_closing_ends_runs_and_waits_of_other_threads():
    others = set(jails_of(os.getpid()))
    box = Sandbox(workers=1)
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(box.run(Program("python", "import time\ntime.sleep(1000)")))
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    while not box._slots[0]._zygotes[False].jobs:
        time.sleep(0.01)
    box.close()
    for thread in threads:
        thread.join()
    assert outcomes == [SandboxError, SandboxError]
    assert set(jails_of(os.getpid())) == others


def test_a_fork_has_its_own_jails_while_another_thread_uses_the_box():
    program = (
        "import os, threading, time\n"
        "from rewards.sandbox.pool import Program, Sandbox\n"
        "box = Sandbox(workers=1)\n"
        "thread = threading.Thread(target=box.run, args=(Program('python', 'import time\\ntime.sleep(2)'),))\n"
        "thread.start()\n"
        "while box._idle: time.sleep(0.01)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    right = box.run(Program('python', 'print(1)')).stdout == b'1\\n'\n"
        "    box.close()\n"
        "    os._exit(not right)\n"
        "print(os.waitpid(child, 0)[1])\n"
        "thread.join()\n"
        "print(box.run(Program('python', 'print(2)')).stdout)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, env=environment())
    assert ended.stdout == b"0\nb'2\\n'\n", ended


def test_the_example_of_the_documentation_runs():
    text = (Path(__file__).parents[1] / "docs" / "sandbox.md").read_text()
    example = text.partition("From Python:\n")[2].partition("\n## ")[0]
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(example)], capture_output=True, env=environment())
    assert ended.stdout == b"b'7\\n' AC\n", ended.stderr


@pytest.mark.parametrize("workers", [0, -1])
def test_no_workers_are_refused(workers):
    with pytest.raises(ValueError, match="at least 1"):
        Sandbox(workers=workers)


def test_without_walls_nothing_runs():
    with pytest.raises(SandboxUnavailable, match="tier ns: blocked; tier landlock: blocked") as caught:
        choose_tier("auto", probe=lambda tier: "blocked")
    assert "sysctl" in str(caught.value)


def test_no_walls_at_all_is_refused_as_root(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="never as root"):
        choose_tier("unsafe-none")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert choose_tier("unsafe-none") == "unsafe-none"
    assert "WITHOUT ISOLATION" in capsys.readouterr().err


def jails_of(parent: int) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(parent).children(recursive=True)
        if any("rewards.sandbox.jail" in word for word in child.cmdline())
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
