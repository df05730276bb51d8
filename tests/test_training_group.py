"""Ranks of a trainer in Ray actors: they meet, share work, and fail together, at once and with a name."""

import time
from types import SimpleNamespace

import pytest

from cluster.actors import ActorDied, PeerLost, PhaseTimeout, StartFailed, wait
from training.config import TrainerConfig
from training.group import PerRank, TrainerGroup, put_back, spawn_trainer
from training.mesh import MeshConfig
from training.rank import Rank

DEADLINE_S = 240.0
SOON_S = 60.0  # far less than the deadline of the collectives, so nothing has waited for that


def start(checkpoint: str = "", ranks: int = 3) -> TrainerGroup:
    settings = TrainerConfig(device="cpu", threads=1, mesh=MeshConfig(data=ranks), deadline_s=DEADLINE_S)
    return spawn_trainer("toy_trainers:Toy", settings, checkpoint)


def ask(ref, deadline_s=DEADLINE_S):
    return wait(ref, phase="testing", deadline_s=deadline_s)


@pytest.fixture(scope="module")
def group(ray_session):
    group = start()
    yield group
    group.stop()


def test_all_ranks_do_it_and_one_answers(group):
    assert ask(group.total.remote(2.0)) == 6.0
    assert len(set(ask(group.process.each()))) == 3


def test_every_rank_has_its_share_and_answers_go_back_to_their_places(group):
    assert ask(group.total.remote(PerRank([1.0, 10.0, 100.0]))) == 111.0
    items = ["a", "bbbb", "cc", "ddd", "e"]
    shares = group.shares(items, len)
    assert sorted(index for share in shares for index in share) == [0, 1, 2, 3, 4]
    assert all(share == sorted(share) for share in shares)
    assert put_back(shares, [[items[i].upper() for i in share] for share in shares]) == ["A", "BBBB", "CC", "DDD", "E"]
    assert group.dealt(items, len).values == [[items[i] for i in share] for share in shares]


def test_the_ranks_of_a_pipeline_have_the_same_share_and_one_answer():
    """Two pipelines of two: ranks 0 and 2 are one, 1 and 3 the other."""
    asked: list[tuple[int, str]] = []

    class Process:
        def __init__(self, rank: int):
            self.call = SimpleNamespace(remote=lambda method, share: asked.append((rank, share)) or f"from {rank}")

    group = TrainerGroup([Process(rank) for rank in range(4)], data=2)
    assert sorted(index for share in group.shares(["a", "bb", "ccc"], len) for index in share) == [0, 1, 2]
    joint = group.train.each(PerRank(["even", "odd"]))
    assert asked == [(0, "even"), (1, "odd"), (2, "even"), (3, "odd")]
    assert joint.listed == 2 and list(joint.refs) == ["from 0", "from 1", "from 2", "from 3"]


def test_several_answers_come_from_rank_0_and_take_all(group):
    total, from_rank_0 = group.totals.options(num_returns=2).remote(5)
    assert ask(total) == 15.0 and ask(from_rank_0)
    assert ask(group.total.remote(1.0)) == 3.0  # and the others are ready


def test_a_deadline_names_the_phase(group):
    with pytest.raises(PhaseTimeout, match="testing: no answer within"):
        ask(group.nap.remote(1.0), deadline_s=0.1)
    assert ask(group.total.remote(1.0)) == 3.0


def test_more_ranks_than_gpus_are_refused_at_once(ray_session):
    settings = TrainerConfig(device="cuda", mesh=MeshConfig(data=4))
    with pytest.raises(StartFailed, match="a mesh of 4 ranks needs as many GPUs, and the cluster has 0"):
        spawn_trainer("toy_trainers:Toy", settings, "")


@pytest.fixture
def pair(ray_session):
    """A group to be broken."""
    group = start(ranks=2)
    assert ask(group.total.remote(1.0)) == 2.0
    yield group
    group.stop()


@pytest.mark.slow
def test_a_killed_rank_ends_the_wait_for_all(pair):
    started = time.monotonic()
    with pytest.raises(ActorDied, match="testing: a worker process died"):
        ask(pair.die.remote(1))
    assert time.monotonic() - started < SOON_S


_NCCL = "NCCL error in: NCCLUtils.cpp:94, {}, NCCL version 2.27\n{}: what it usually reflects\nLast error:\n{}"


@pytest.mark.parametrize(
    ("message", "kind", "said"),
    [
        (
            _NCCL.format("remote process exited", "ncclRemoteError", "peer closed"),
            PeerLost,
            "rank 1 .*exited.* peer closed$",
        ),
        (_NCCL.format("invalid usage", "ncclInvalidUsage", "Duplicate GPU detected"), RuntimeError, "Duplicate GPU"),
        ("[gloo/tcp/pair.cc:534] Connection closed by peer. This is a reading error", PeerLost, "closed by peer$"),
        ("shapes do not fit", RuntimeError, "^shapes do not fit$"),
    ],
)
def test_an_error_of_a_collective_says_its_cause(message, kind, said):
    with pytest.raises(Exception, match=said) as raised, Rank(1, 2, 60.0)._lost_ranks_named():
        raise RuntimeError(message)
    assert type(raised.value) is kind


@pytest.mark.slow
def test_a_rank_killed_unseen_is_noticed_by_the_one_that_answers(pair):
    total, _ = pair.totals.options(num_returns=2).remote(5, dying=1)
    with pytest.raises(ActorDied, match="testing: trainer rank 0 lost another rank"):
        ask(total, SOON_S)


@pytest.mark.slow
def test_an_error_of_one_rank_comes_back_as_itself_though_others_wait(pair):
    started = time.monotonic()
    with pytest.raises(KeyError, match="a tensor"):
        ask(pair.fail.remote(1))
    assert time.monotonic() - started < SOON_S


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "error", "said"),
    [
        ("missing", StartFailed, "a trainer rank cannot start: ValueError: no checkpoint at missing"),
        ("kills 1", ActorDied, "testing: a worker process died"),
    ],
)
def test_ranks_that_cannot_start_are_known_by_the_first_call(ray_session, checkpoint, error, said):
    group = start(checkpoint, ranks=2)
    try:
        with pytest.raises(error, match=said):
            ask(group.total.remote(1.0))
    finally:
        group.stop()
