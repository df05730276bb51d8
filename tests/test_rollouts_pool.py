"""Generator replicas in real processes: many behave as one, and a killed one changes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file

from data.packing import deal
from models.checkpoint import load_model
from models.weight_names import hub_views
from rollouts.config import GeneratorConfig
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import TransformersGenerator
from rollouts.transport import Files
from tests.killing import kill_and_wait

PARAMS = SamplingParams(max_new_tokens=40, group_size=4, seed=3)
CONFIG = GeneratorConfig(replicas=2, max_slots=8, deadline_s=120)


def requests(count=12) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(key=f"r{i}", prompt_ids=rng.integers(8, 300, rng.integers(2, 20)).tolist()) for i in range(count)]


def content(groups):
    return [
        (
            g.key,
            [tuple(v.tolist() for v in (c.token_ids, c.sampling_logprobs, c.policy_versions)) for c in g.completions],
        )
        for g in groups
    ]


@pytest.fixture(scope="module")
def weights(tiny_checkpoint):
    """Other weights than the checkpoint's, so that a replica without them is noticed."""
    return {name: 1.1 * t for name, t in hub_views(load_model(tiny_checkpoint)).items()}


@pytest.fixture(scope="module")
def other_weights(weights, tmp_path_factory):
    """The same as files, for the pool to sync from."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(weights, folder / "model.safetensors")
    return Files(folder)


@pytest.fixture(scope="module")
def pool(ray_session, tiny_checkpoint, other_weights):
    from rollouts.pool import GeneratorPool

    pool = GeneratorPool(str(tiny_checkpoint), CONFIG)
    pool.sync(other_weights, version=5)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def expected(pool):
    return content(pool.sample(requests(), PARAMS))


@pytest.mark.slow
def test_the_same_as_one_generator_per_share(expected, tiny_checkpoint, weights):
    generator = TransformersGenerator(str(tiny_checkpoint), max_slots=CONFIG.max_slots, device="cpu")
    generator.load_weights(weights, version=5)
    asked = requests()
    alone = []
    for share in deal([len(r.prompt_ids) for r in asked], CONFIG.replicas):
        alone += content(generator.sample([asked[i] for i in sorted(share)], PARAMS))
    by_key = dict(alone)
    for key, completions in expected:
        assert [tokens for tokens, _, _ in completions] == [tokens for tokens, _, _ in by_key[key]]
        assert {version for _, _, versions in completions for version in versions} == {5}


@pytest.mark.slow
def test_a_second_call_gives_the_same(pool, expected):
    assert content(pool.sample(requests(), PARAMS)) == expected


@pytest.mark.slow
def test_a_replica_killed_while_sampling_is_replaced_and_nothing_changes(pool, expected):
    victim, other = pool.replicas
    arrived = []
    for group in pool.stream(requests(), PARAMS):
        arrived.append(group)
        if len(arrived) == 2:
            kill_and_wait(victim)
    assert len(arrived) == len({g.key for g in arrived}) == 12
    by_key = {group.key: group for group in arrived}
    assert content([by_key[r.key] for r in requests()]) == expected
    assert pool.replicas[0] is not victim
    assert pool.replicas[1] is other  # the busy one goes on


@pytest.mark.slow
def test_a_replica_that_dies_while_the_trainer_goes_on_gets_no_other_weights(pool, expected, monkeypatch):
    """From files it gets those of the last sync; a trainer that has moved on is not asked."""
    from cluster.actors import ActorDied

    pool.weights_move = True
    kill_and_wait(pool.replicas[0])
    assert content(pool.sample(requests(), PARAMS)) == expected
    kill_and_wait(pool.replicas[0])
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_synced", (SimpleNamespace(repeats=False), 5))
        with pytest.raises(ActorDied, match=r"a generator died while rollouts ran ahead.*sync\.transport files"):
            pool.sample(requests(), PARAMS)
    pool.weights_move = False
    assert content(pool.sample(requests(), PARAMS)) == expected


@pytest.mark.slow
def test_a_replica_killed_between_calls_gets_the_last_weights(pool, expected):
    kill_and_wait(pool.replicas[1])
    assert content(pool.sample(requests(), PARAMS)) == expected


@pytest.mark.slow
def test_a_replica_killed_before_a_sync_gets_its_weights(pool, other_weights, expected):
    kill_and_wait(pool.replicas[0])
    pool.sync(other_weights, version=6)
    groups = pool.sample(requests(), PARAMS)
    assert {v for g in groups for c in g.completions for v in c.policy_versions} == {6}
    tokens = [[t for t, _, _ in completions] for _, completions in content(groups)]
    assert tokens == [[t for t, _, _ in completions] for _, completions in expected]


@pytest.mark.slow
def test_a_replica_killed_before_a_probe_gets_the_last_weights(pool):
    sequences = [[9, 20, 31, 7, 250]]
    before = [scores[0].tolist() for scores in pool.score(sequences)]
    kill_and_wait(pool.replicas[1])
    assert [scores[0].tolist() for scores in pool.score(sequences)] == before
    assert pool.context() == 128


@pytest.mark.slow
def test_a_replica_killed_while_the_trainer_works_is_replaced(ray_session, tiny_checkpoint, other_weights, monkeypatch):
    """Put to sleep like the others, awake when it is time, and with the weights of the sync that follows."""
    from cluster.actors import wait
    from rollouts import pool as module

    monkeypatch.setitem(module._ENGINES, "transformers", "faulty_generators:Sleepy")
    config, room = CONFIG.model_copy(update={"replicas": 1, "sleep": True}), []
    pool = module.GeneratorPool(str(tiny_checkpoint), config, make_room=lambda: room.append(len(room)))
    try:
        kill_and_wait(pool.replicas[0])
        pool.sleep()
        assert len(room) == 1  # whoever shares the device has left before another engine starts there
        assert wait(pool.replicas[0].is_asleep.remote(), phase="testing", deadline_s=60)
        kill_and_wait(pool.replicas[0])
        pool.wake()
        pool.sync(other_weights, version=7)
        assert len(room) == 2
        kill_and_wait(pool.replicas[0])
        pool.wake_cache()
        assert len(room) == 4  # and again after it has sent the weights
        [group] = pool.sample(requests(1), PARAMS)
        assert {v for c in group.completions for v in c.policy_versions} == {7}
    finally:
        pool.close()


@pytest.mark.slow
def test_a_bad_prompt_comes_back_as_itself(pool):
    with pytest.raises(ValueError, match="'long' has 500 tokens"):
        pool.sample([*requests(3), Request(key="long", prompt_ids=[9] * 500)], PARAMS)


@pytest.mark.slow
def test_no_requests(pool):
    assert pool.sample([], PARAMS) == []


@pytest.mark.slow
def test_a_deadline_names_its_phase(ray_session, tiny_checkpoint):
    from cluster.actors import PhaseTimeout
    from rollouts.pool import GeneratorPool

    # A replica takes seconds to start.
    pool = GeneratorPool(str(tiny_checkpoint), GeneratorConfig(replicas=1, deadline_s=0.2))
    try:
        with pytest.raises(PhaseTimeout, match="sampling: no answer within"):
            pool.sample(requests(1), PARAMS)
    finally:
        pool.close()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_said_at_once(ray_session, tmp_path, monkeypatch):
    from cluster.actors import StartFailed
    from rollouts.pool import GeneratorPool

    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    pool = GeneratorPool(str(tmp_path), GeneratorConfig(replicas=2, deadline_s=120))
    started: list[int] = []
    monkeypatch.setattr(pool, "_restart", started.append)
    try:
        with pytest.raises(StartFailed, match=r"sampling: a worker process cannot start: .*lama"):
            pool.sample(requests(2), PARAMS)
        with pytest.raises(StartFailed, match="weight sync to version 1: a worker process cannot start"):
            pool.sync(Files(tmp_path), version=1)
    finally:
        pool.close()
    assert not started


@pytest.mark.slow
def test_a_replica_that_is_out_of_reach_is_ended_before_another_one_starts(pool, monkeypatch):
    from cluster.actors import ActorDied, wait

    old = pool.replicas[1]
    monkeypatch.setattr("rollouts.pool.next_item", _out_of_reach_once())
    groups = pool.sample(requests(), PARAMS)
    assert len(groups) == 12 and pool.replicas[1] is not old
    with pytest.raises(ActorDied):
        wait(old.context.remote(), phase="testing", deadline_s=60)


def _out_of_reach_once():
    """`next_item`, which at first says that the second replica died although it lives."""
    from cluster.actors import ActorDied, next_item

    told: list[ActorDied] = []

    def tell(streams, **settings):
        if told:
            return next_item(streams, **settings)
        told.append(ActorDied("unavailable"))
        told[0].key = 1
        raise told[0]

    return tell


@pytest.mark.slow
def test_stolen_work_is_sampled_once_and_the_same(ray_session, tiny_checkpoint, other_weights, expected):
    """Batches of two prompts from one queue; one replica dies with a batch in hand."""
    from rollouts.pool import GeneratorPool

    stealing = GeneratorPool(str(tiny_checkpoint), CONFIG.model_copy(update={"work_stealing": True}))
    try:
        stealing.sync(other_weights, version=5)
        arrived = []
        for group in stealing.stream(requests(), PARAMS):
            arrived.append(group)
            if len(arrived) == 3:
                kill_and_wait(stealing.replicas[1])
    finally:
        stealing.close()
    assert sorted(group.key for group in arrived) == sorted(request.key for request in requests())
    tokens = {key: [t for t, _, _ in completions] for key, completions in content(arrived)}
    assert tokens == {key: [t for t, _, _ in completions] for key, completions in expected}


def test_long_completions_are_begun_first_and_dealt_evenly():
    from rollouts.pool import GeneratorPool

    pool = GeneratorPool.__new__(GeneratorPool)  # no processes: only what it would hand to whom
    pool.config, pool.replicas = CONFIG, [None, None]
    lengths = {"a": 10, "b": 500, "c": 40, "d": 480, "e": 0}
    asked = [Request(key=key, prompt_ids=[9], expected_tokens=tokens) for key, tokens in lengths.items()]
    shares = [[request.key for request in batch] for queue in pool._divide(asked, PARAMS).values() for batch in queue]
    assert shares == [["b", "a", "e"], ["d", "c"]]
    pool.config = CONFIG.model_copy(update={"work_stealing": True})
    queues = pool._divide(asked, PARAMS)
    assert queues[0] is queues[1]
    assert [[request.key for request in batch] for batch in queues[0]] == [["b", "d"], ["c", "a"], ["e"]]
