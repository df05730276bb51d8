"""The GRPO stage while Ray's object store is nearly full, or full with nowhere to go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.problem_pool import ProblemsConfig
from rewards.config import RewardSpec
from rl.config import GRPOConfig
from rollouts.config import GeneratorConfig, RolloutConfig, WeightSyncConfig
from tests.conftest import TESTS, make_checkpoint
from training.config import TrainerConfig

CONFIG = GRPOConfig(
    problems=ProblemsConfig(families=("chain_sum",), levels=(1,)),
    rewards=(RewardSpec(use="toy_rewards:Digits"),),
    steps=6,
    questions_per_step=3,
    group_size=4,
    mini_batches=2,
    rollout=RolloutConfig(template="plain", max_new_tokens=8),
    generator=GeneratorConfig(replicas=2, max_slots=64, sync=WeightSyncConfig(bucket_mib=8)),
    trainer=TrainerConfig(device="cpu", threads=1, row_tokens=512, checkpoint_every=2),
)
FILES = ("metrics.jsonl", "samples.jsonl", "model.safetensors")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """With weights of some 20 MB: two of its buckets do not fit beside what fills the store."""
    return make_checkpoint(tmp_path_factory.mktemp("policy") / "checkpoint", hidden_size=256, vocab_size=600)


def stage(how: str, policy: Path, output: Path, disk_share: float = 1.0) -> dict:
    """`disk_share`: how full a disk Ray may write to; 1.0, as how full the one of this machine is is not the test's."""
    output.mkdir(exist_ok=True)
    command = [sys.executable, str(TESTS / "pressure_program.py"), how, CONFIG.model_dump_json(), policy, output]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    surrounding = kept | {"PYTHONPATH": paths, "RAY_local_fs_capacity_threshold": str(disk_share)}
    done = subprocess.run(command, env=surrounding, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def left(output: Path) -> list[bytes]:
    return [(output / name).read_bytes() for name in FILES]


@pytest.fixture(scope="module")
def undisturbed(policy, tmp_path_factory) -> list[bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    found = stage("nothing", policy, output)
    assert found["said"] == "" and found["ended"]["spilled_mib"] == 0
    return left(output)


@pytest.mark.slow
def test_a_full_object_store_spills_and_the_stage_goes_on(undisturbed, policy, tmp_path):
    found = stage("spillable", policy, tmp_path)
    assert found["said"] == ""
    (filled,) = found["filled"]
    assert filled["used_mib"] > 0.9 * filled["size_mib"]
    assert found["ended"]["spilled_mib"] > 50
    assert left(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_full_object_store_without_room_on_the_disk_stops_the_stage_which_resumes(undisturbed, policy, tmp_path):
    """What is in use cannot be spilled either; Ray then takes memory of the disk, up to a share of it."""
    found = stage("in use", policy, tmp_path, disk_share=0.001)
    assert found["said"].startswith(
        "StoreFull: weight sync to version 2: Ray's object store is full, and so is the disk"
    )
    assert "of 75 MiB); free the disk of Ray's temporary folder" in found["said"]
    assert "ray start --object-store-memory" in found["said"] and "generator.sync.bucket_mib" in found["said"]
    assert not (tmp_path / "model.safetensors").exists()
    assert stage("in use", policy, tmp_path)["said"] == ""  # with room on the disk it goes on in that
    assert left(tmp_path) == undisturbed
