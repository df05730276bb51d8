"""The grader pool keeps its promises about hanging, crashing and dying children."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rewards.grader_process import CheckResult, GraderPool

BOMBS = ["9^{9^{9^{9}}}", "((10!)!)!"]


@pytest.fixture(scope="module")
def pool():
    with GraderPool(deadline_s=10.0) as pool:
        yield pool


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "rewards.math_worker" in child.cmdline()]


def wait_until(condition) -> bool:
    for _ in range(300):
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "(x-1)(x+2)", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
    ],
)
def test_formulas_are_compared(pool, gold, answer, equal):
    assert pool.check(gold, answer) == CheckResult(equal=equal)


def test_text_that_cannot_be_judged_is_told_apart_by_side(pool):
    assert pool.check("5", r"\frac{1}{").unparsed == "answer"
    assert pool.check(r"\frac{0}{0}", "5").unparsed == "gold"
    assert pool.check("P(A|B)", "5").equal is False  # a gold answer that is no formula is compared as text


@pytest.mark.parametrize("bomb", BOMBS)
def test_hanging_comparison_is_killed_and_the_pool_goes_on(bomb):
    with GraderPool(deadline_s=1.0) as pool:
        result = pool.check("42", bomb)
        assert result.equal is None and result.error is not None
        assert pool.check(r"\sqrt{4}", "2").equal is True


def test_hang_is_replaced_without_starting_python_again():
    with GraderPool(deadline_s=1.0) as pool:
        assert pool.check("2+3", "5").equal is True
        before = {child.pid for child in children()}
        assert pool.check("42", BOMBS[0]).error is not None
        assert pool.check("2+3", "5").equal is True
        assert {child.pid for child in children()} == before


def test_hang_is_blamed_on_the_side_that_hangs():
    with GraderPool(deadline_s=1.0) as pool:
        assert pool.check("42", BOMBS[0]).at == "answer"
        assert pool.check(BOMBS[0], "42").at == "gold"


def test_worker_that_is_killed_between_checks_is_replaced():
    with GraderPool() as pool:
        assert pool.check("2+3", "5").equal is True
        for child in children():
            child.children()[0].kill()
        assert pool.check("2+3", "5").equal is True


def test_import_time_is_not_counted_against_the_first_deadline():
    with GraderPool(deadline_s=0.5) as pool:  # starting python and sympy takes longer than that on a busy machine
        assert pool.check("2+3", "5").equal is True


def test_dead_child_is_replaced():
    with GraderPool() as pool:
        assert pool.check("2+3", "5").equal is True
        for child in children():
            child.kill()
            child.wait()
        assert pool.check("2+3", "5").equal is True


def test_child_that_dies_during_a_check_is_an_error_not_an_answer():
    with GraderPool(deadline_s=20.0) as pool:
        assert pool.check("2+3", "5").equal is True
        (victim,) = children()
        results = []
        thread = threading.Thread(target=lambda: results.append(pool.check("42", BOMBS[0])))
        thread.start()
        time.sleep(0.2)
        victim.kill()
        thread.join()
        assert results == [CheckResult(error="crashed")]
        assert pool.check("2+3", "5").equal is True


@pytest.mark.skipif(sys.platform != "linux", reason="reads the limit of another process")
def test_memory_of_the_child_is_limited():
    with GraderPool(memory_mb=300) as pool:
        assert pool.check("2+3", "5").equal is True
        assert children()[0].rlimit(psutil.RLIMIT_AS) == (300 << 20, 300 << 20)


def test_works_from_many_threads():
    with GraderPool(workers=2) as pool:
        results: dict[int, CheckResult] = {}

        def check(number: int) -> None:
            results[number] = pool.check(f"{number}+1", str(number + 1 if number % 2 else number))

        threads = [threading.Thread(target=check, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {number: result.equal for number, result in results.items()} == {n: n % 2 == 1 for n in range(8)}


def test_closing_leaves_no_process_and_refuses_further_checks():
    pool = GraderPool(workers=2)
    pool.check("2+3", "5")
    pids = {child.pid for child in children()}
    pool.close()
    assert not pids & {child.pid for child in children()}
    with pytest.raises(RuntimeError, match="closed"):
        pool.check("2+3", "5")


def test_killed_parent_leaves_no_orphan_even_in_the_middle_of_a_check():
    program = (
        "import threading, time, psutil\n"
        "from rewards.grader_process import GraderPool\n"
        "pool = GraderPool(deadline_s=1.0); pool.check('2+3', '5')\n"
        "pool._idle.queue[0].deadline_s = 1000.0\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "pool.check('42', '9^{9^{9^{9}}}')\n"
    )
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    assert wait_until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie")


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="workers=0"):
        GraderPool(workers=0)


def test_pool_works_after_a_fork_while_another_thread_uses_it():
    with GraderPool(deadline_s=30.0) as pool:
        pool._idle.get()  # as another thread would, which the fork does not have
        child = os.fork()
        if child == 0:
            os._exit(0 if pool.check("x+1", "1+x").equal else 1)
        end = time.monotonic() + 60
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.05)
        if done == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done == (child, 0)
