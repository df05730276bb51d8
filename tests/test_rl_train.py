"""The GRPO stage with its real processes, on a very small model."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer

import numpy as np
import psutil
import pytest

from data.config import ProblemSource
from data.problem_pool import ProblemsConfig
from rewards.config import RewardSpec
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rollouts.config import GeneratorConfig, RolloutConfig
from tests.conftest import make_checkpoint
from tests.killing import kill_and_wait
from training.config import OptimizerConfig, TrainerConfig
from training.mesh import MeshConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

CONFIG = GRPOConfig(
    problems=ProblemsConfig(families=("chain_sum",), levels=(1,), instruction_share=0.5),
    rewards=(RewardSpec(use="toy_rewards:Digits"),),
    steps=12,
    questions_per_step=3,
    group_size=8,
    mini_batches=2,
    reference_every=6,
    general_from_share=0.5,
    rollout=RolloutConfig(template="plain", max_new_tokens=10),
    generator=GeneratorConfig(replicas=1, max_slots=64),
    optimizer=OptimizerConfig(lr=5e-3),
    trainer=TrainerConfig(device="cpu", threads=1, row_tokens=512, checkpoint_every=4),
)
ALONE = CONFIG.model_copy(update={"sample_in_trainer": True})  # one process less, where it matters not who samples
DETERMINISTIC = ("model.safetensors", "config.json", "metrics.jsonl", "samples.jsonl", "stats.json")
# Reports take a while, so that a kill hits the middle of the run.
DRIVER = """
import sys
import time
from pathlib import Path
from rl.config import GRPOConfig
from rl.train import run
from training.stage import StageContext
config, policy, output = sys.argv[1:]
context = StageContext(name="rl", inputs={"policy": Path(policy)}, output=Path(output), seed=5,
    report=lambda event: time.sleep(0.2))
run(GRPOConfig.model_validate_json(config), context)
"""


def context_for(checkpoint: Path, output: Path, **kwargs) -> StageContext:
    output.mkdir(parents=True, exist_ok=True)
    return StageContext(name="rl", inputs={"policy": checkpoint}, output=output, seed=5, **kwargs)


@pytest.fixture(scope="module")
def undisturbed(ray_session, tiny_checkpoint, tmp_path_factory):
    """(run folder, its events) of a run that nothing happened to."""
    from rl.train import run

    events: list[dict] = []
    output = tmp_path_factory.mktemp("undisturbed")
    run(CONFIG, context_for(tiny_checkpoint, output, report=events.append))
    return output, events


def assert_same_files(a: Path, b: Path, but: str = ""):
    batches = sorted(path.relative_to(a).as_posix() for path in (a / "groups").iterdir())
    assert batches == sorted(path.relative_to(b).as_posix() for path in (b / "groups").iterdir())
    for name in (name for name in (*DETERMINISTIC, *batches) if name != but):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


# --- a run that nothing happens to ---


@pytest.mark.slow
def test_reward_rises(undisturbed):
    rewards = [row["reward/mean"] for row in read_log(undisturbed[0] / "metrics.jsonl") if "reward/mean" in row]
    assert len(rewards) == CONFIG.rollouts
    assert np.mean(rewards[-2:]) > 2 * np.mean(rewards[:2]) + 0.05


@pytest.mark.slow
def test_trainer_and_generator_agree(undisturbed):
    rows = read_log(undisturbed[0] / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, CONFIG.steps + 1))
    assert all(row["mismatch/abs_mean"] < 1e-5 for row in rows)
    for row in rows[:: CONFIG.mini_batches]:  # the policy that samples is the one that trains
        assert row["loss/importance_ratio_mean"] == pytest.approx(1, abs=1e-6)
        assert row["loss/importance_ratio_max"] == pytest.approx(1, abs=1e-5)
        assert row["kl/old_k3"] == pytest.approx(0, abs=1e-8)
    assert any(abs(row["loss/importance_ratio_max"] - 1) > 1e-3 for row in rows[1 :: CONFIG.mini_batches])


@pytest.mark.slow
def test_sampling_in_the_trainer_trains_the_same_policy(undisturbed, tiny_checkpoint, tmp_path):
    from rl.train import run

    run(CONFIG.model_copy(update={"sample_in_trainer": True}), context_for(tiny_checkpoint, tmp_path))
    assert_same_files(undisturbed[0], tmp_path, but="metrics.jsonl")
    synced, alone = (read_log(folder / "metrics.jsonl") for folder in (undisturbed[0], tmp_path))
    assert [{k: v for k, v in row.items() if not k.startswith("sync/")} for row in synced] == alone


@pytest.mark.slow
def test_a_trainer_that_takes_turns_with_its_generators_trains_the_same_policy(undisturbed, tiny_checkpoint, tmp_path):
    from rl.train import run

    optimizer = CONFIG.optimizer.model_copy(update={"offload": "all"})
    run(CONFIG.model_copy(update={"optimizer": optimizer}), context_for(tiny_checkpoint, tmp_path))
    assert_same_files(undisturbed[0], tmp_path)


@pytest.mark.slow
def test_sharded_ranks_train_and_generators_get_their_weights(undisturbed, tiny_checkpoint, tmp_path):
    """Expert parallel: the first rollout is that of one process, and after each sync the policy that samples is the one
    that trains."""
    from rl.train import run

    trainer = CONFIG.trainer.model_copy(update={"mesh": MeshConfig(data=2, expert=2)})
    optimizer = CONFIG.optimizer.model_copy(update={"ema_decay": 0.9})
    config = CONFIG.model_copy(update={"trainer": trainer, "optimizer": optimizer, "steps": 4})
    run(config, context_for(tiny_checkpoint, tmp_path))
    rows, alone = read_log(tmp_path / "metrics.jsonl"), read_log(undisturbed[0] / "metrics.jsonl")
    assert len(rows) == 4
    assert all(row["mismatch/abs_mean"] < 1e-5 for row in rows)
    assert all(row["sync/probe_abs_mean"] < 1e-5 for row in rows if "sync/probe_abs_mean" in row)
    same = ("reward/mean", "loss/policy", "optimizer/grad_norm", "policy/entropy", "moe/max_violation")
    assert {k: rows[0][k] for k in same} == pytest.approx({k: alone[0][k] for k in same}, rel=1e-5, abs=1e-6)
    assert (tmp_path / "model.safetensors").exists() and (tmp_path / "average" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_ranks_of_a_pipeline_train_what_generators_sample(ray_session, tmp_path):
    """Before and after a sync; every completion gets the logprobs that it was sampled with."""
    from rl.train import run

    trainer = CONFIG.trainer.model_copy(update={"mesh": MeshConfig(pipeline=2)})
    config = CONFIG.model_copy(update={"trainer": trainer, "steps": 4})
    run(config, context_for(make_checkpoint(tmp_path / "policy", num_layers=4), tmp_path / "run"))
    rows = read_log(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 4 and all(row["mismatch/abs_mean"] < 1e-5 for row in rows)
    probes = [row["sync/probe_abs_mean"] for row in rows if "sync/probe_abs_mean" in row]
    assert probes and max(probes) < 1e-5
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_reference_becomes_the_policy_at_the_boundary(undisturbed):
    divergence = {row["step"]: row["kl/reference_k3"] for row in read_log(undisturbed[0] / "metrics.jsonl")}
    for first_step in (1, 7):  # reference_every = 6
        assert divergence[first_step] == pytest.approx(0, abs=1e-8)
        assert all(divergence[step] > 1e-6 for step in range(first_step + 1, first_step + 6))


@pytest.mark.slow
def test_general_problems_enter_at_their_share_of_the_steps(undisturbed):
    rows = [row for row in read_log(undisturbed[0] / "metrics.jsonl") if "reward/mean" in row]
    with_general = [row["step"] for row in rows if "domain/general" in row]
    assert with_general == [row["step"] for row in rows if row["step"] > CONFIG.steps / 2]


@pytest.mark.slow
def test_counters_account_for_every_completion(undisturbed):
    rows = [row for row in read_log(undisturbed[0] / "metrics.jsonl") if "reward/mean" in row]
    for row in rows:
        assert row["experience/sampled"] == CONFIG.questions_per_step * CONFIG.mini_batches * CONFIG.group_size
        parts = [row[f"experience/{name}"] for name in ("trained", "unscorable", "dropped")]
        assert sum(parts) == row["experience/sampled"]


@pytest.mark.slow
def test_progress_reaches_the_end(undisturbed):
    steps = [event["step"] for event in undisturbed[1]]
    assert steps == sorted(steps)
    assert steps[-1] == CONFIG.steps
    assert all(event["total_steps"] == CONFIG.steps for event in undisturbed[1])


# --- kills ---


@pytest.mark.slow
@pytest.mark.parametrize("at_row", [3, 7])
def test_a_killed_driver_resumes_bit_for_bit(undisturbed, tiny_checkpoint, tmp_path, at_row):
    import ray

    from rl.train import run

    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, CONFIG.model_dump_json(), str(tiny_checkpoint), str(tmp_path)]
    driver = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": address}, cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 180
    while driver.poll() is None and len(read_log(tmp_path / "metrics.jsonl")) < at_row:
        assert time.monotonic() < deadline, "the driver made no progress"
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "model.safetensors").exists(), "killed too late to prove anything"
    run(CONFIG, context_for(tiny_checkpoint, tmp_path))
    assert_same_files(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_a_killed_trainer_stops_the_stage_which_then_resumes_bit_for_bit(undisturbed, tiny_checkpoint, tmp_path):
    from cluster.actors import ActorDied
    from rl.train import Session, run, train

    def kill_at_step_7(event):
        if event["step"] == 7:
            session.trainer.stop()

    session = Session(CONFIG, context_for(tiny_checkpoint, tmp_path, report=kill_at_step_7))
    try:
        with pytest.raises(ActorDied, match="rl: step 8"):
            train(session)
    finally:
        session.close()
    run(CONFIG, context_for(tiny_checkpoint, tmp_path))
    assert_same_files(tmp_path, undisturbed[0])


@pytest.mark.slow
def test_rollouts_that_run_ahead_learn_too_and_go_on_bit_for_bit(ray_session, tiny_checkpoint, tmp_path):
    """Also when the trainer dies while later batches are being sampled."""
    from cluster.actors import ActorDied
    from rl.train import Session, run, train

    generator = GeneratorConfig(replicas=1, max_slots=20)  # the last of a batch leave room for others
    objective = ObjectiveConfig(correction="tis_token")
    config = CONFIG.model_copy(update={"max_staleness": 3, "generator": generator, "objective": objective})
    run(config, context_for(tiny_checkpoint, tmp_path / "whole"))

    def kill_at_step_7(event):
        if event["step"] == 7:
            session.trainer.stop()

    session = Session(config, context_for(tiny_checkpoint, tmp_path / "cut", report=kill_at_step_7))
    try:
        with pytest.raises(ActorDied):
            train(session)
    finally:
        session.close()
    run(config, context_for(tiny_checkpoint, tmp_path / "cut"))
    assert_same_files(tmp_path / "whole", tmp_path / "cut")

    rows = read_log(tmp_path / "whole" / "metrics.jsonl")
    batches = [row for row in rows if "experience/sampled" in row]
    assert [row["step"] for row in rows] == list(range(1, CONFIG.steps + 1))
    for row in batches:
        parts = [row[f"experience/{name}"] for name in ("trained", "unscorable", "dropped")]
        assert sum(parts) == row["experience/sampled"] == CONFIG.questions_per_step * 2 * CONFIG.group_size
        assert 0 <= row["staleness/mean"] <= row["staleness/max"] <= 3
    assert max(row["staleness/max"] for row in batches) > 1
    assert np.mean([row["reward/mean"] for row in batches[-2:]]) > 2 * batches[0]["reward/mean"] + 0.05


@pytest.mark.slow
def test_workers_that_die_and_one_that_is_slow_change_nothing(undisturbed, tiny_checkpoint, tmp_path):
    from rl.train import Session, train

    def disturb(event):
        if event.get("phase") != "sampling":
            return
        if event["step"] == 2:
            kill_and_wait(session.rewards._workers[0])
        elif event["step"] == 4:
            kill_and_wait(session.pool.replicas[0])
        elif event["step"] == 6:
            slow = _process_of("TransformersGenerator")
            slow.suspend()
            Timer(3.0, slow.resume).start()

    session = Session(CONFIG, context_for(tiny_checkpoint, tmp_path, report=disturb))
    try:
        train(session)
        assert session.rewards.restarts == 1
    finally:
        session.close()
    assert_same_files(tmp_path, undisturbed[0])
    timings = read_log(tmp_path / "timings.jsonl")
    assert max(row["time/sample_s"] for row in timings) > 3
    assert all(0 < row["packing/fill"] <= 1 for row in timings)


def _process_of(actor: str) -> psutil.Process:
    (found,) = [each for each in psutil.Process().children(recursive=True) if f"::{actor}" in "".join(each.cmdline())]
    return found


@pytest.mark.slow
def test_a_full_disk_stops_the_stage_which_goes_on_when_there_is_room(undisturbed, tiny_checkpoint, tmp_path):
    from rl.train import run

    store = tmp_path / "checkpoints"
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(store)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        with pytest.raises(OSError, match=f"the disk of {store} is full: .* make room"):
            run(ALONE, context_for(tiny_checkpoint, tmp_path))
        assert not (tmp_path / "model.safetensors").exists()
        subprocess.run(["mount", "-o", "remount,size=500m", str(store)], check=True)
        run(ALONE, context_for(tiny_checkpoint, tmp_path))
        assert_same_files(tmp_path, undisturbed[0], but="metrics.jsonl")
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)


# --- batches that are not as asked for ---


@pytest.mark.slow
def test_dynamic_sampling_fills_the_batch_with_groups_that_have_a_signal(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    some = (RewardSpec(use="toy_rewards:DigitsOfSome"),)
    config = ALONE.model_copy(update={"objective": ObjectiveConfig(preset="dapo"), "rewards": some, "steps": 4})
    run(config, context_for(tiny_checkpoint, tmp_path))
    wanted = CONFIG.questions_per_step * CONFIG.mini_batches * CONFIG.group_size
    batches = [row for row in read_log(tmp_path / "metrics.jsonl") if "experience/sampled" in row]
    assert [batch["experience/trained"] for batch in batches] == [wanted, wanted]
    assert all(batch["experience/sampled"] == wanted + batch["experience/dropped"] > wanted for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "repeats"),
    [("rollouts.transformers_generator:TransformersGenerator", 200), ("faulty_generators:ShortContext", 12)],
)
def test_a_prompt_that_fills_the_context_is_left_out_and_counted(
    ray_session, tiny_checkpoint, tmp_path, monkeypatch, engine, repeats
):
    """The model's context, or that of an engine which takes less."""
    from rl.train import run
    from rollouts import pool

    monkeypatch.setitem(pool._ENGINES, "transformers", engine)
    rows = [{"question": "What is 1 + 2? " * (repeats if i == 3 else 1) + f"({i})", "answer": "3"} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    source = ProblemSource(path=str(tmp_path / "sums.jsonl"), row_schema="columns")
    update = {"problems": ProblemsConfig(sources=(source,)), "steps": 2}
    run(CONFIG.model_copy(update=update), context_for(tiny_checkpoint, tmp_path / "run"))
    first = read_log(tmp_path / "run" / "metrics.jsonl")[0]
    assert first["experience/prompts_too_long"] == 1
    assert first["experience/sampled"] == 5 * CONFIG.group_size


# --- routing replay ---


@pytest.mark.slow
def test_v3_2_with_a_generator_of_another_precision_keeps_its_routing(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    update = {
        "objective": ObjectiveConfig(preset="v3_2"),
        "generator": CONFIG.generator.model_copy(update={"dtype": "bfloat16"}),
        "mismatch_limit": 1.0,  # random weights make much of rounding
    }
    run(CONFIG.model_copy(update=update), context_for(tiny_checkpoint, tmp_path))
    rows = read_log(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, CONFIG.steps + 1))
    assert all(np.isfinite(value) for row in rows for value in row.values())
    assert all(row["mismatch/routing_agreement_used"] == 1.0 for row in rows)
    agreement = [row["mismatch/routing_agreement"] for row in rows[:: CONFIG.mini_batches]]
    assert all(0.5 < share < 1 for share in agreement)
    assert all("mismatch/routing_agreement" not in row for row in rows[1 :: CONFIG.mini_batches])
    mismatch, rewards = ([row[name] for row in rows if name in row] for name in ("mismatch/abs_mean", "reward/mean"))
    assert np.mean(mismatch[-4:]) < 2 * np.mean(mismatch[:4])
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.05


@pytest.mark.slow
def test_completions_without_routes_stop_the_stage(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import Session, train

    config = ALONE.model_copy(update={"objective": ObjectiveConfig(preset="v3_2")})
    session = Session(config, context_for(tiny_checkpoint, tmp_path))
    compare = session.compare
    session.compare = lambda *a: [replace(s, routed_experts=None) for s in compare(*a)]  # as another engine may
    try:
        with pytest.raises(StageError, match="rl: 48 of 48 completions came without routed experts"):
            train(session)
    finally:
        session.close()


# --- truncated sampling ---


def truncated(**update) -> GRPOConfig:
    rollout = CONFIG.rollout.model_copy(update={"top_p": 0.8})
    return GRPOConfig(**(dict(CONFIG) | {"rollout": rollout, "steps": 2, "general_from_share": 0.0} | update))


@pytest.mark.slow
def test_the_sampling_mask_makes_the_trained_policy_the_one_that_sampled(ray_session, tiny_checkpoint, tmp_path):
    """Without it, the same completions look less probable by what top-p cut off."""
    from rl.train import run

    configs = {
        "kept": truncated(objective=ObjectiveConfig(keep_sampling_mask=True)),
        "ignored": truncated(allow_truncated_sampling=True, mismatch_limit=5.0),
    }
    rows = {}
    for name, config in configs.items():
        run(config, context_for(tiny_checkpoint, tmp_path / name))
        rows[name] = read_log(tmp_path / name / "metrics.jsonl")
    first = rows["kept"][0]
    assert all(row["mismatch/abs_mean"] < 1e-5 for row in rows["kept"])
    assert first["loss/importance_ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert first["loss/importance_ratio_max"] == pytest.approx(1, abs=1e-5)
    assert 1 < first["rollout/support_mean"] < 300 and 0 <= first["rollout/support_forced"] < 1  # of 340 tokens
    assert rows["ignored"][0]["mismatch/abs_mean"] > 0.05
    assert "rollout/support_mean" not in rows["ignored"][0]
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in configs]
    assert samples[0] == samples[1]


@pytest.mark.slow
def test_a_generator_that_returns_no_sampling_mask_stops_the_stage(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import Session, train

    config = truncated(objective=ObjectiveConfig(preset="v3_2")).model_copy(update={"sample_in_trainer": True})
    session = Session(config, context_for(tiny_checkpoint, tmp_path))
    stream = session.pool.stream
    session.pool.stream = lambda requests, params: stream(requests, replace(params, return_support=False))
    try:
        with pytest.raises(StageError, match="rl: 48 of 48 completions came without their sampling mask: this gen"):
            train(session)
    finally:
        session.close()


# --- what must not go on ---


@pytest.mark.slow
def test_too_many_completions_without_a_score_stop_the_stage(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    spec = RewardSpec(use="toy_rewards:DigitsOfSome", options={"fails": True})
    config = ALONE.model_copy(update={"rewards": (spec,)})
    with pytest.raises(StageError, match=r"of 48 .* cannot be scored, more than unscorable_limit 0.2: .*no opinion"):
        run(config, context_for(tiny_checkpoint, tmp_path))


def test_a_domain_that_no_problem_of_the_files_has_stops_the_stage_at_its_start(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    (tmp_path / "sums.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    source = ProblemSource(path=str(tmp_path / "sums.jsonl"), row_schema="columns", domain="sums")
    spec = RewardSpec(use="toy_rewards:Digits", domains=["summs"])
    config = ALONE.model_copy(update={"problems": ProblemsConfig(sources=(source,)), "rewards": (spec,)})
    with pytest.raises(StageError, match=r"rewards\[0\].domains: no problem has domain 'summs'. Did you mean sums\?"):
        run(config, context_for(tiny_checkpoint, tmp_path))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_stage_and_keeps_weights_and_batch(ray_session, tiny_checkpoint, tmp_path):
    from cluster.actors import wait
    from rl.train import Session, train

    session = Session(ALONE, context_for(tiny_checkpoint, tmp_path))
    annotate = session.annotate
    session.annotate = lambda *a: [  # as a broken kernel would
        replace(s, old_logprobs=np.full_like(s.old_logprobs, -np.inf)) for s in annotate(*a)
    ]
    try:
        before = wait(session.trainer.weight_checksums.remote(), phase="test", deadline_s=60)
        with pytest.raises(StageError, match=r"rl: step 1: .*the batch is in .*nonfinite_step_1\.npz"):
            train(session)
        after = wait(session.trainer.weight_checksums.remote(), phase="test", deadline_s=60)
    finally:
        session.close()
    assert before == after
    arrays = np.load(tmp_path / "checkpoints" / "nonfinite_step_1.npz")
    assert {name.partition("/")[2] for name in arrays.files} >= {"prompt_ids", "completion_ids", "advantage"}
    assert np.isneginf(arrays["0/old_logprobs"]).all()
    assert read_log(tmp_path / "metrics.jsonl") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "said", "retry"),
    [
        ("Broken", r"broken: RuntimeError: the grader is out of order \(toy_rewards\.py line \d+\); the same command "
         r"resumes once the reward is mended$", False),
        ("Unreachable", r"unreachable: ConnectionRefusedError: the judge is away \(toy_rewards\.py line \d+\)$", True),
    ],
)  # fmt: skip
def test_a_broken_reward_stops_the_stage_with_its_reason(ray_session, tiny_checkpoint, tmp_path, reward, said, retry):
    """Only where a judge was away may the same command help as things are."""
    from rl.train import run

    config = ALONE.model_copy(update={"rewards": (RewardSpec(use=f"toy_rewards:{reward}"),)})
    with pytest.raises(StageError, match=rf"48 of 48 completions cannot be scored, .*{said}") as caught:
        run(config, context_for(tiny_checkpoint, tmp_path))
    assert caught.value.retry is retry


@pytest.mark.slow
def test_a_reward_that_is_not_there_is_named(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    config = ALONE.model_copy(update={"rewards": (RewardSpec(use="toy_rewards:Digit"),)})
    with pytest.raises(Exception, match="no reward class or function at 'toy_rewards:Digit'"):
        run(config, context_for(tiny_checkpoint, tmp_path))
