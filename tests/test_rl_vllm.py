"""The GRPO stage with vLLM sampling, and what stops it when the policy that samples is not the one that trains."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from data.problem_pool import ProblemsConfig
from models.export import export_checkpoint
from rewards.config import RewardSpec
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rollouts.config import GeneratorConfig, RolloutConfig, WeightSyncConfig
from training.config import OptimizerConfig, TrainerConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

pytestmark = pytest.mark.slow
SMALL = {"kv_cache_memory_bytes": 64 << 20}
CONFIG = GRPOConfig(
    problems=ProblemsConfig(families=("chain_sum",), levels=(1,)),
    rewards=(RewardSpec(use="toy_rewards:Digits"),),
    steps=8,
    questions_per_step=3,
    group_size=8,
    mini_batches=2,
    rollout=RolloutConfig(template="plain", max_new_tokens=10),
    generator=GeneratorConfig(engine="vllm", replicas=1, max_slots=64, engine_args=SMALL, deadline_s=300),
    optimizer=OptimizerConfig(lr=5e-3),
    trainer=TrainerConfig(device="cpu", threads=1, row_tokens=512, checkpoint_every=4),
)


def run(config, checkpoint, output):
    from rl.train import run

    output.mkdir(parents=True, exist_ok=True)
    run(config, StageContext(name="rl", inputs={"policy": checkpoint}, output=output, seed=5))
    return read_log(output / "metrics.jsonl")


def with_generator(**changes) -> GRPOConfig:
    return CONFIG.model_copy(update={"generator": CONFIG.generator.model_copy(update=changes)})


def test_a_policy_stored_in_fp8_is_refused_before_anything_starts(tiny_checkpoint, tmp_path):
    export_checkpoint(tiny_checkpoint, tmp_path / "fp8", "fp8")
    with pytest.raises(StageError, match=r"fp8 is stored in FP8.*r1 export .*fp8 FOLDER"):
        run(CONFIG, tmp_path / "fp8", tmp_path / "run")


def test_a_wire_that_quantises_otherwise_than_the_trainer_is_refused():
    trainer = {"precision": "fp8", "fp8": {"scales": "power_of_two"}}
    with pytest.raises(ValueError, match="would train on other weights"):
        GRPOConfig.model_validate({"trainer": trainer, "generator": {"sync": {"wire": "fp8"}}})


def test_vllm_samples_the_policy_that_trains(ray_session, tiny_checkpoint, tmp_path):
    pytest.importorskip("vllm")
    rows = run(CONFIG, tiny_checkpoint, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["mismatch/abs_mean"] < 1e-5 for row in rows)
    probed = [row for row in rows if "sync/probe_abs_mean" in row]
    assert len(probed) == 4  # after every sync
    assert all(row["sync/probe_abs_max"] < 1e-4 for row in probed)
    for row in rows[:: CONFIG.mini_batches]:
        assert row["loss/importance_ratio_max"] == pytest.approx(1, abs=1e-5)
    rewards = [row["reward/mean"] for row in rows if "reward/mean" in row]
    assert rewards[-1] > rewards[0]


@pytest.mark.parametrize("replay", ["off", "rollout"])
def test_v3_2_takes_the_routing_out_of_the_mismatch_with_bfloat16(ray_session, tiny_checkpoint, tmp_path, replay):
    """Sampling in bfloat16, training in float32: 8 steps of the V3.2 objective, with its routing replay and without."""
    pytest.importorskip("vllm")
    update = {
        "objective": ObjectiveConfig(preset="v3_2", routing_replay=replay),
        "mismatch_limit": 1.0,  # random weights make much of rounding
    }
    rows = run(with_generator(dtype="bfloat16").model_copy(update=update), tiny_checkpoint, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, CONFIG.steps + 1))
    assert all(np.isfinite(value) for row in rows for value in row.values())
    first_steps = rows[:: CONFIG.mini_batches]  # of rollout batches: old logprobs are those of the policy
    assert all(0.5 < row["mismatch/routing_agreement"] < 1 for row in first_steps)
    used = [row["mismatch/routing_agreement_used"] for row in (rows if replay == "rollout" else first_steps)]
    assert all(share == 1 if replay == "rollout" else share < 1 for share in used)
    mismatch, rewards = ([row[name] for row in rows if name in row] for name in ("mismatch/abs_mean", "reward/mean"))
    assert np.mean(mismatch[-4:]) < 2 * np.mean(mismatch[:4])
    assert rewards[-1] > rewards[0]


@pytest.mark.parametrize("transport", ["object_store", "collective", "shared_memory", "files"])
def test_both_transports_train_the_same_policy(ray_session, tiny_checkpoint, tmp_path, transport):
    """Buckets of 1 MiB, smaller than the model, against sampling in the trainer, where nothing is sent."""
    settings = {
        "engine": "transformers",
        "engine_args": {},
        "sync": WeightSyncConfig(transport=transport, bucket_mib=1),
    }
    short = {"steps": 4, "mini_batches": 2}
    sent = run(with_generator(**settings).model_copy(update=short), tiny_checkpoint, tmp_path / transport)
    update = short | {"sample_in_trainer": True, "generator": GeneratorConfig(max_slots=64)}
    alone = run(CONFIG.model_copy(update=update), tiny_checkpoint, tmp_path / "alone")
    probes = ("sync/probe_abs_mean", "sync/probe_abs_max")
    assert [{k: v for k, v in row.items() if k not in probes} for row in sent] == alone
    names = [folder / "model.safetensors" for folder in (tmp_path / transport, tmp_path / "alone")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_replica_that_loses_a_tensor_stops_the_run_and_names_it(ray_session, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(_engines(), "transformers", "faulty_generators:LosesATensor")
    config = with_generator(engine="transformers", engine_args={})
    lost = r"1 of 91 tensors differ, the first is model\.layers\.0\.self_attn\.o_proj\.weight"
    with pytest.raises(StageError, match=rf"rl: after the weight sync to version 2 .* nats per token, .*{lost}"):
        run(config, tiny_checkpoint, tmp_path)
    report = json.loads((tmp_path / ".weight_sync_failure.json").read_text())
    assert report["replicas"][0]["held_differently"] == ["model.layers.0.self_attn.o_proj.weight"]


def test_a_policy_with_a_nan_is_said_to_have_one(ray_session, tiny_checkpoint, tmp_path):
    folder, name = tmp_path / "policy", "model.layers.0.self_attn.o_proj.weight"
    shutil.copytree(tiny_checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[name][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match=rf"rl: 1 of the policy's own weights have .* a NaN, the first is {name}, so"):
        run(with_generator(engine="transformers", engine_args={}), folder, tmp_path / "out")


def test_a_coarse_wire_is_seen_and_may_be_refused(ray_session, tiny_checkpoint, tmp_path):
    """FP8 weights make another policy; by how much is a number, and the recipe says how much is too much."""
    short = {"steps": 2, "mini_batches": 2}
    coarse = with_generator(engine="transformers", engine_args={}, sync=WeightSyncConfig(wire="fp8", probe_limit=5.0))
    [first, _] = run(coarse.model_copy(update=short | {"mismatch_limit": 5.0}), tiny_checkpoint, tmp_path / "passes")
    assert first["sync/probe_abs_mean"] > 1e-3
    assert first["mismatch/abs_mean"] > 1e-3
    strict = with_generator(engine="transformers", engine_args={}, sync=WeightSyncConfig(wire="fp8", probe_limit=1e-4))
    with pytest.raises(StageError, match="its weights are fp8 on the way and float32 in the engine"):
        run(strict.model_copy(update=short), tiny_checkpoint, tmp_path / "stops")


def _engines():
    from rollouts import pool

    return pool._ENGINES
