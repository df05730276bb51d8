"""Reward workers in real Ray processes: whatever they do, every group gets its scores, and errors are no numbers."""

import pytest

from cluster.actors import ActorDied
from cluster.config import ClusterConfig
from cluster.running import running
from data.problems import Problem
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.pool import RewardPool
from rewards.reward import Verdict
from tests.killing import kill_and_wait

PROBLEM = Problem(
    id="p", messages=({"role": "user", "content": "1+1?"},), ground_truth="2", checker="math", domain="sums",
    language="en",
)  # fmt: skip


@pytest.fixture
def make_pool(ray_session):
    pools = []

    def make(use="faulty_rewards:Obedient", **config):
        pools.append(RewardPool([RewardSpec(use=use)], RewardWorkersConfig(**config)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def verdicts(scores):
    return {key: [score.verdict for score in row] for key, row in scores.items()}


def test_every_group_gets_its_own_scores(make_pool):
    pool = make_pool(workers=2, max_pending=1)  # full queues all the time
    for i in range(20):
        pool.submit(str(i), PROBLEM, [f"{i}a", f"{i}b"])
    scores = pool.collect()
    assert {key: [score.detail for score in row] for key, row in scores.items()} == {
        str(i): [f"obedient: {i}a", f"obedient: {i}b"] for i in range(20)
    }
    assert pool.take_counts() == {"obedient": {"pass": 40, "fail": 0, "error": 0, "timeout": 0, "unreadable": 0}}
    assert pool.take_counts() == {"obedient": {"pass": 0, "fail": 0, "error": 0, "timeout": 0, "unreadable": 0}}
    assert pool.collect() == {}


def test_finished_groups_can_be_had_while_others_wait(make_pool):
    pool = make_pool()
    assert pool.take_finished() == {}
    pool.submit("a", PROBLEM, ["x"])
    taken = {}
    while not taken:
        taken = pool.take_finished()
    assert verdicts(taken) == {"a": [Verdict.PASS]}
    assert pool.collect() == {}


def test_a_worker_that_dies_costs_no_group(make_pool, tmp_path):
    pool = make_pool()
    for key, text in (("a", "x"), ("b", f"die {tmp_path / 'once'}"), ("c", "y")):
        pool.submit(key, PROBLEM, [text])
    assert verdicts(pool.collect()) == {key: [Verdict.PASS] for key in "abc"}
    assert pool.restarts == 1


def test_what_a_worker_has_judged_is_counted_when_it_dies_afterwards(make_pool):
    pool = make_pool()
    pool.submit("a", PROBLEM, ["x", "y"])
    pool.collect()
    kill_and_wait(pool._workers[0])
    assert pool.take_counts()["obedient"]["pass"] == 2
    pool.submit("b", PROBLEM, ["x"])
    assert verdicts(pool.collect()) == {"b": [Verdict.PASS]}
    assert pool.take_counts()["obedient"]["pass"] == 1


def test_a_group_that_kills_its_workers_is_unscorable_and_alone(make_pool):
    pool = make_pool()
    for key, text in (("a", "die"), ("b", "x")):
        pool.submit(key, PROBLEM, [text, "z"])
    scores = pool.collect()
    assert verdicts(scores) == {"a": [Verdict.ERROR] * 2, "b": [Verdict.PASS] * 2}
    assert all(score.value is None for score in scores["a"])
    assert pool.restarts == 2


def test_a_group_that_is_not_answered_in_time_is_unscorable_and_alone(make_pool, tmp_path, caplog):
    pool = make_pool(deadline_s=8)
    for key, text in (("a", "x"), ("b", "hang"), ("c", "y")):
        pool.submit(key, PROBLEM, [text])
    with running(tmp_path, ClusterConfig(), dict):
        scores = pool.collect()
    (report,) = (tmp_path / "stalls").glob("*.txt")
    assert str(report) in caplog.text and "faulty_rewards.py" in report.read_text()
    assert verdicts(scores) == {"a": [Verdict.PASS], "b": [Verdict.ERROR], "c": [Verdict.PASS]}
    assert "no answer within 8 s" in scores["b"][0].detail and scores["b"][0].timed_out


def test_a_reward_that_never_starts_is_an_error_and_no_endless_loop(make_pool):
    pool = make_pool("faulty_rewards:Unstartable")
    for key in "abcdefgh":
        pool.submit(key, PROBLEM, ["x"])
    with pytest.raises(ActorDied, match="in a row without scoring anything"):
        pool.collect()
