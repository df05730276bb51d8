"""Waiting for processes: every failure says which phase it hit."""

import os
import subprocess
import sys
import time

import pytest

from cluster.actors import ActorDied, PhaseTimeout, StartFailed, kill, next_item, spawn, wait


class Worker:
    def __init__(self, fault: str = ""):
        if fault:
            raise ValueError(fault)

    def echo(self, value):
        return value

    def threads(self) -> str:
        return os.environ["OMP_NUM_THREADS"]

    def fail(self):
        raise KeyError("a tensor")

    def sleep(self):
        time.sleep(60)

    def count(self, values):
        for value in values:  # noqa: UP028, Ray sends into the generator
            yield value


@pytest.fixture(scope="module")
def worker(ray_session):
    worker = spawn(Worker, threads=3)
    yield worker
    kill(worker)


def ask(ref, deadline_s=60):
    return wait(ref, phase="testing", deadline_s=deadline_s)


def test_values_come_back_in_order(worker):
    assert ask(worker.echo.remote(1)) == 1
    assert ask([worker.echo.remote(i) for i in range(3)]) == [0, 1, 2]
    assert ask(worker.threads.remote()) == "3"


def test_an_error_comes_back_as_itself(worker):
    with pytest.raises(KeyError, match="a tensor"):
        ask(worker.fail.remote())


def test_streams(worker):
    streams = {"a": worker.count.options(num_returns="streaming").remote([1, 2])}
    items = [next_item(streams, phase="testing", deadline_s=60) for _ in range(3)]
    assert items == [("a", 1), ("a", 2), ("a", None)]


def test_a_deadline_names_the_phase(ray_session):
    sleeper = spawn(Worker)
    with pytest.raises(PhaseTimeout, match="testing: no answer within"):
        ask(sleeper.sleep.remote(), deadline_s=0.5)
    kill(sleeper)


def test_a_killed_process_names_the_phase_and_its_key(ray_session):
    victim = spawn(Worker)
    pending = victim.sleep.remote()
    kill(victim)
    with pytest.raises(ActorDied, match="testing: a worker process died"):
        ask(pending)
    streams = {"b": victim.count.options(num_returns="streaming").remote([1])}
    with pytest.raises(ActorDied) as raised:
        next_item(streams, phase="testing", deadline_s=60)
    assert raised.value.key == "b"


def test_a_process_that_cannot_start_says_why_in_one_line(ray_session):
    unstartable = spawn(Worker, "no such\n  reward, or\nnone")
    for call in (unstartable.echo.remote(0), [unstartable.echo.remote(0)]):
        with pytest.raises(StartFailed) as raised:
            ask(call)
        sentence = "testing: a worker process cannot start: ValueError: no such reward, or none"
        assert str(raised.value) == sentence
    streams = {"c": unstartable.count.options(num_returns="streaming").remote([1])}
    with pytest.raises(StartFailed, match="no such reward"):
        next_item(streams, phase="testing", deadline_s=60)


# --- actors named by their import path ---


def test_an_actor_named_by_its_path_works_like_one_of_a_class(ray_session):
    actor = spawn("toy_actors:Counter", 5, step=2)
    try:
        assert wait(actor.add.remote(3), phase="adding", deadline_s=60) == 11
        stream = actor.count.options(num_returns="streaming").remote(3)
        items = [next_item({"a": stream}, phase="counting", deadline_s=60) for _ in range(4)]
        assert items == [("a", 11), ("a", 13), ("a", 15), ("a", None)]
        with pytest.raises(ZeroDivisionError):
            wait(actor.fail.remote(), phase="failing", deadline_s=60)
        assert "toy_actors" not in sys.modules  # only the actor's process has imported it
    finally:
        kill(actor)
    with pytest.raises(ActorDied):
        for _ in range(100):  # it may answer once or twice before it is told
            wait(actor.add.remote(1), phase="adding", deadline_s=60)
            time.sleep(0.1)


def test_a_class_that_is_not_there_is_named(ray_session):
    actor = spawn("toy_actors:Nobody")
    with pytest.raises(StartFailed, match="has no attribute 'Nobody'"):
        wait(actor.add.remote(1), phase="adding", deadline_s=60)


def test_the_driver_of_grpo_needs_no_torch():
    program = "import rl.train, sft.loop, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
