"""Waiting for processes: every failure says which phase it hit."""

import os
import time

import pytest

from cluster.actors import ActorDied, PhaseTimeout, kill, next_item, spawn, wait


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


def test_a_process_that_cannot_start_says_why(ray_session):
    with pytest.raises(ActorDied, match="no such reward"):
        ask(spawn(Worker, "no such reward").echo.remote(0))
