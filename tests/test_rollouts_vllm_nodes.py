"""One engine whose processes are spread over nodes, which are actors of one machine here; and whose GPUs are whose."""

import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from models.checkpoint import load_model
from models.weight_names import hub_views
from rollouts.config import GeneratorConfig, WeightSyncConfig
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import TransformersGenerator
from rollouts.transport import Files, open_transport
from tests.toy_senders import Sender

pytestmark = pytest.mark.slow
BASE = "recipes/tiny/base"
CONFIG = GeneratorConfig(
    engine="vllm", replicas=1, tensor_parallel=2, nodes=2, device="cpu", max_slots=16, deadline_s=240
)
PARAMS = SamplingParams(max_new_tokens=16, group_size=4, seed=1)
REQUESTS = [
    Request(key=f"p{i}", prompt_ids=ids)
    for i, ids in enumerate([[9, 40, 300, 12], [77, 15, 201, 33, 8, 120, 90], [250] * 12])
]


def worst_gap(groups, model) -> float:
    """Largest difference of sampled logprobs, nats, from `model`'s own forward pass."""
    worst = 0.0
    for group in groups:
        for completion in group.completions:
            ids = torch.tensor([*group.prompt_ids, *completion.token_ids])[None]
            with torch.no_grad():
                logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1].double()
            expected = torch.log_softmax(logits, -1)[range(len(completion.token_ids)), completion.token_ids.tolist()]
            worst = max(worst, float(np.abs(expected.numpy() - completion.sampling_logprobs).max()))
    return worst


def tokens(groups):
    return [[completion.token_ids.tolist() for completion in group.completions] for group in groups]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another policy: a checkpoint with weights a little different from the base's."""
    folder = tmp_path_factory.mktemp("other")
    model = load_model(BASE)
    weights = {name: 1.05 * tensor if tensor.ndim > 1 else tensor.clone() for name, tensor in hub_views(model).items()}
    model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def pool(ray_session):
    pytest.importorskip("vllm")
    from rollouts.pool import GeneratorPool

    pool = GeneratorPool(BASE, CONFIG)
    yield pool
    pool.close()


def eager(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()


def test_its_logprobs_are_those_of_transformers(pool):
    assert worst_gap(pool.sample(REQUESTS, PARAMS), eager(BASE)) <= 1e-5


def test_weights_reach_the_processes_of_all_nodes(pool, other):
    before = tokens(pool.sample(REQUESTS, PARAMS))
    pool.sync(Files(other), version=1)
    groups = pool.sample(REQUESTS, PARAMS)
    assert worst_gap(groups, eager(other)) <= 1e-5
    assert tokens(groups) != before


@pytest.mark.parametrize("name", ["object_store", "collective"])
def test_every_process_reads_what_a_trainer_sends(pool, name, tmp_path):
    from cluster.actors import kill, spawn, wait

    trainer = spawn("toy_senders:Sender", BASE)
    wait(trainer.change.remote(3), phase="changing", deadline_s=60)
    pool.sync(open_transport(trainer, WeightSyncConfig(transport=name, bucket_mib=1), tmp_path), version=3)
    sender = Sender(BASE)
    sender.change(3)
    generator = TransformersGenerator(BASE, device="cpu")
    generator.load_weights(dict(sender.weights()), version=3)
    sequences = [request.prompt_ids for request in REQUESTS]
    for held, expected in zip(pool.score(sequences)[0], generator.score(sequences), strict=True):
        np.testing.assert_allclose(held, expected, atol=2e-5)
    kill(trainer)


def processes(name: str, below: str = "") -> list[psutil.Process]:
    """Of this test's own Ray, with this name; those that one of the name `below` has started."""
    found = [p for p in psutil.Process().children(recursive=True) if name in _shown(p)]
    return [p for p in found if not below or below in _shown(p.parent())]


def _shown(process: psutil.Process | None) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()) if process is not None else ""
    return ""


def test_a_lost_node_takes_the_engine_along_which_is_started_again(pool, other, caplog):
    pool.sync(Files(other), version=2)
    before = tokens(pool.sample(REQUESTS, PARAMS))
    (member,), engine = processes("ray::EngineMember"), processes("ray::VLLMGenerator")
    member.kill()
    _, alive = psutil.wait_procs(engine, timeout=60)  # before it ends it may still answer
    assert engine and not alive
    assert tokens(pool.sample(REQUESTS, PARAMS)) == before
    assert "VLLMGenerator" in caplog.text and "starting it again" in caplog.text


def test_what_was_sampled_when_a_process_was_lost_is_sampled_again(pool, caplog):
    """Whatever notices it first: the collective that it was in, or who watches it."""
    requests = [Request(key=f"q{i}", prompt_ids=[9, 40 + i, 300]) for i in range(24)]
    params = SamplingParams(max_new_tokens=48, group_size=4, seed=2)
    before = tokens(pool.sample(requests, params))
    groups = {}
    for group in pool.stream(requests, params):
        if not groups:
            (worker,) = processes("VLLM::Worker", below="ray::EngineMember")
            worker.kill()
        groups[group.key] = group
    assert tokens([groups[request.key] for request in requests]) == before
    assert "starting it again and sampling its share again" in caplog.text


def test_a_node_lost_while_the_engine_starts_is_replaced(ray_session):
    pytest.importorskip("vllm")
    from rollouts.pool import GeneratorPool

    known = {process.pid for process in processes("ray::EngineMember")}
    starting = GeneratorPool(BASE, CONFIG)
    try:
        end = time.monotonic() + 60
        while not (new := [p for p in processes("ray::EngineMember.serve") if p.pid not in known]):
            assert time.monotonic() < end
            time.sleep(0.02)
        new[0].kill()
        assert starting.context() == AutoConfig.from_pretrained(BASE).max_position_embeddings
    finally:
        starting.close()


def test_what_it_does_not_return_on_cpu_is_refused(pool):
    params = SamplingParams(max_new_tokens=4, group_size=1, seed=1, top_p=0.5, return_support=True)
    with pytest.raises(ValueError, match=r"neither routed experts nor sampling supports; set generator\.tensor_paral"):
        pool.sample(REQUESTS, params)


# --- members, without an engine ---


def start(member: str, folder, start_s: float):
    from cluster.actors import spawn

    return spawn("toy_engine_nodes:Leader", member, str(folder), start_s)


def serving(folder) -> list[int]:
    """Process ids of both members."""
    end = time.monotonic() + 60
    while len(files := list(folder.glob("*.pid"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(file.read_text()) for file in sorted(files)]


def assert_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"{pid} outlives its engine"
        time.sleep(0.1)


@pytest.mark.parametrize("end", ["killed by its owner", "crashed"])
def test_members_know_where_to_meet_and_end_with_the_engine(ray_session, tmp_path, end):
    from cluster.actors import kill, wait

    leader = start("LastingMember", tmp_path, 0.0)
    told = wait(leader.told.remote(), phase="asking", deadline_s=60)
    assert (told["nnodes"], told["node_rank"], told["model"]) == (3, 0, "none")
    assert told["master_addr"] and told["master_port"] > 0
    members = serving(tmp_path)
    if end == "crashed":
        psutil.Process(wait(leader.pid.remote(), phase="asking", deadline_s=60)).kill()
    else:
        kill(leader)
    for pid in members:
        assert_gone(pid)


def test_a_member_that_cannot_start_is_the_reason_that_the_engine_does_not(ray_session, tmp_path):
    from cluster.actors import StartFailed, wait

    leader = start("FailingMember", tmp_path, 60.0)
    sentence = r"MemberLost: an engine cannot start without its processes on another node: node [12] of 3 is out of"
    with pytest.raises(StartFailed, match=sentence):
        wait(leader.told.remote(), phase="starting", deadline_s=30)


def test_an_engine_that_cannot_start_leaves_no_member(ray_session, tmp_path):
    from cluster.actors import StartFailed, wait

    leader = start("LastingMember", tmp_path, -1.0)  # a sleep that raises
    with pytest.raises(StartFailed, match="must be non-negative"):
        wait(leader.told.remote(), phase="starting", deadline_s=30)
    for file in tmp_path.glob("*.pid"):
        assert_gone(int(file.read_text()))


def test_a_member_that_is_lost_later_ends_the_engine(ray_session, tmp_path):
    from cluster.actors import ActorDied, wait

    leader = start("LastingMember", tmp_path, 0.0)
    wait(leader.told.remote(), phase="asking", deadline_s=60)
    working = leader.work.remote()
    first, second = serving(tmp_path)
    psutil.Process(first).kill()
    with pytest.raises(ActorDied, match="Leader"):
        wait(working, phase="working", deadline_s=30)
    assert_gone(second)
