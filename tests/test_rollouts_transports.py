"""Every way of weights from a trainer's process to those of both engines: they arrive, or nothing is sampled."""

import itertools
import os
import shutil
import signal

import numpy as np
import pytest

from rollouts.buckets import CorruptWeights, pack_weights
from rollouts.config import GeneratorConfig, WeightSyncConfig
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import TransformersGenerator
from rollouts.transport import OtherHost, open_transport
from rollouts.weight_sync import WrongWeights

pytestmark = pytest.mark.slow
TRANSPORTS = ("object_store", "collective", "shared_memory", "files")
SEQUENCES = [[9, 20, 31, 7, 250], list(range(20, 50))]
REQUESTS = [Request(key="a", prompt_ids=[9, 10, 11])]
DEADLINE_S = 300.0  # a busy machine takes a minute to start an engine
SMALL = {"kv_cache_memory_bytes": 64 << 20}
versions = itertools.count(1)


def ask(actor, method, *args):
    from cluster.actors import wait

    return wait(getattr(actor, method).remote(*args), phase="test", deadline_s=DEADLINE_S)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, tmp_path_factory):
    """A copy, in which a file tells replicas to die."""
    return shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("mortal") / "checkpoint")


@pytest.fixture(scope="module")
def trainer(ray_session, checkpoint):
    from cluster.actors import kill, spawn

    trainer = spawn("toy_senders:Sender", str(checkpoint))
    yield trainer
    kill(trainer)


@pytest.fixture(scope="module", autouse=True)
def mortal_engines():
    from rollouts import pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pool._ENGINES, "transformers", "toy_senders:MortalTransformers")
        patch.setitem(pool._ENGINES, "vllm", "toy_senders:MortalVLLM")
        yield


@pytest.fixture(scope="module")
def liar(trainer, checkpoint):
    from cluster.actors import kill, spawn

    liar = spawn("toy_senders:Sender", str(checkpoint))
    ask(liar, "flip_a_byte")
    yield liar
    kill(liar)


def open_pool(checkpoint, engine, replicas):
    from rollouts.pool import GeneratorPool

    arguments = SMALL if engine == "vllm" else {}
    config = GeneratorConfig(
        engine=engine, replicas=replicas, device="cpu", engine_args=arguments, deadline_s=DEADLINE_S
    )
    return GeneratorPool(str(checkpoint), config)


@pytest.fixture(scope="module")
def pools(ray_session, checkpoint):
    opened = {"transformers": open_pool(checkpoint, "transformers", 2), "vllm": open_pool(checkpoint, "vllm", 1)}
    yield opened
    for pool in opened.values():
        pool.close()


@pytest.fixture(scope="module")
def reference(checkpoint):
    """Scores of the weights as they cross in a wire format, by a generator in this process."""
    from toy_senders import Sender

    sender, generator = Sender(str(checkpoint)), TransformersGenerator(str(checkpoint), device="cpu")

    def scores(seed, wire="float32"):
        sender.change(seed)
        buckets = pack_weights(sender.weights(), 1 << 30, wire)
        generator.load_weights(dict(pair for bucket in buckets for pair in bucket.tensors()), version=0)
        return generator.score(SEQUENCES)

    return scores


def transport(trainer, tmp_path, name, **settings):
    config = WeightSyncConfig(transport=name, **{"bucket_mib": 1} | settings)  # smaller than the model
    return open_transport(trainer, config, tmp_path / "weights")


def gap(scores, expected) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(scores, expected, strict=True))


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "fp8"])
@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_outputs_follow_the_weights(pools, trainer, reference, tmp_path, engine, name, wire):
    pool, seed = pools[engine], next(versions)
    before = pool.score(SEQUENCES)
    ask(trainer, "change", seed)
    pool.sync(transport(trainer, tmp_path, name, wire=wire), version=seed)
    expected = reference(seed, wire)
    for old, scores in zip(before, pool.score(SEQUENCES), strict=True):
        assert gap(scores, expected) <= 5e-5
        assert gap(scores, old) > 1e-2
    [group] = pool.sample(REQUESTS, SamplingParams(max_new_tokens=4, seed=1))
    assert set(group.completions[0].policy_versions) == {seed}


@pytest.mark.parametrize(("engine", "name"), [*(("transformers", name) for name in TRANSPORTS), ("vllm", "collective")])
def test_a_replica_that_dies_in_a_sync_is_replaced_and_the_sync_succeeds(
    pools, checkpoint, trainer, reference, tmp_path, engine, name
):
    from toy_senders import DIE

    pool, seed = pools[engine], next(versions)
    ask(trainer, "change", seed)
    (checkpoint / DIE).touch()
    old = list(pool.replicas)
    pool.sync(transport(trainer, tmp_path, name), version=seed)
    assert not (checkpoint / DIE).exists()
    assert not set(map(id, old)) & set(map(id, pool.replicas))
    assert all(gap(scores, reference(seed)) <= 5e-5 for scores in pool.score(SEQUENCES))


@pytest.mark.parametrize("name", ["object_store", "collective", "shared_memory"])
def test_a_changed_byte_stops_the_sync_and_nothing_is_sampled(pools, liar, tmp_path, name):
    pool = pools["transformers"]
    with pytest.raises(CorruptWeights, match=r"weight model\.embed_tokens\.weight arrived otherwise"):
        pool.sync(transport(liar, tmp_path, name), version=next(versions))
    assert_nothing_is_sampled(pool)
    pool.sync(transport(liar, tmp_path, name, checksums=False), version=next(versions))  # nobody looks
    pool.sample(REQUESTS, SamplingParams(max_new_tokens=2))


@pytest.mark.parametrize("name", ["object_store", "collective", "shared_memory"])
def test_a_trainer_that_fails_is_the_error_and_all_are_free_again(pools, trainer, tmp_path, name):
    pool, seed = pools["transformers"], next(versions)
    ask(trainer, "change", seed)
    ask(trainer, "spoil", float("nan"))
    with pytest.raises(ValueError, match="block quantisation takes a finite matrix"):
        pool.sync(transport(trainer, tmp_path, name, wire="fp8"), version=seed)
    assert_nothing_is_sampled(pool)
    assert [ask(actor, "mapped") for actor in (trainer, *pool.replicas)] == [0, 0, 0]
    ask(trainer, "spoil", 0.0)
    pool.sync(transport(trainer, tmp_path, name, wire="fp8"), version=seed)
    assert len(pool.sample(REQUESTS, SamplingParams(max_new_tokens=2))) == 1


def assert_nothing_is_sampled(pool):
    for replica in pool.replicas:
        with pytest.raises(WrongWeights, match="incomplete"):
            ask(replica, "sample", REQUESTS, SamplingParams(max_new_tokens=2))


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_shared_memory_is_free_after_a_sync(pools, trainer, tmp_path, engine):
    pools[engine].sync(transport(trainer, tmp_path, "shared_memory"), version=next(versions))
    assert {ask(actor, "mapped") for actor in (trainer, *pools[engine].replicas)} == {0}


@pytest.mark.parametrize("name", ["collective", "shared_memory"])
def test_a_replica_that_stands_still_ends_in_an_error(ray_session, checkpoint, trainer, tmp_path, name, monkeypatch):
    """And the trainer is free for another sync."""
    from rollouts import transport as transports

    monkeypatch.setattr(transports, "_GRACE_S", 2.0)
    pool = open_pool(checkpoint, "transformers", 2)
    way = transport(trainer, tmp_path, name)
    try:
        stuck = ask(pool.replicas[1], "process_id")
        pool.sync(way, version=1)
        os.kill(stuck, signal.SIGSTOP)
        with pytest.raises(Exception, match=r"no answer within|nothing moved for|another process failed"):
            way.send(pool.replicas, 2, 5.0)
        assert ask(pool.replicas[0], "version") in (None, 1)
    finally:
        os.kill(stuck, signal.SIGCONT)
        pool.close()
    fresh = open_pool(checkpoint, "transformers", 1)
    try:
        fresh.sync(way, version=3)
    finally:
        fresh.close()


def test_shared_memory_refuses_another_host(pools, trainer, tmp_path):
    pool = pools["transformers"]
    held = pool.score(SEQUENCES)
    way = transport(trainer, tmp_path, "shared_memory")
    way._ask = lambda method, *args: "another"
    with pytest.raises(OtherHost, match="runs on another host or GPU, or in another container"):
        way.send(pool.replicas, 99, DEADLINE_S)
    assert gap(pool.score(SEQUENCES)[0], held[0]) == 0  # nothing changed
