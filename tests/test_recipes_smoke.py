"""The whole chain, small, as a user runs it: `r1 run recipes/tiny/smoke.yaml`."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import load

pytestmark = [pytest.mark.slow, pytest.mark.chain]
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/tiny/smoke.yaml"
R1 = [sys.executable, "-m", "pipeline.cli", "run", str(RECIPE)]
STAGES = tuple(load(RECIPE).stages)
ONE_OF_EACH_KIND = ("zero", "cold_start_data", "cold_start_sft", "preference_data", "helpful_rm", "evaluate")


def content_hashes(run: Path) -> dict[str, str]:
    return {stage: json.loads((run / stage / "manifest.json").read_text())["content_hash"] for stage in STAGES}


def run_chain(output: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([*R1, f"output={output}", *args], cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An undisturbed run of the chain."""
    output = tmp_path_factory.mktemp("smoke") / "run"
    result = run_chain(output)
    assert result.returncode == 0, result.stderr
    return output


def test_the_chain_leaves_every_artifact_and_a_report(finished):
    assert set(content_hashes(finished)) == set(STAGES)
    scores = json.loads((finished / "evaluate" / "results.json").read_text())["checkpoints"]
    assert list(scores) == ["base", "zero", "dev1", "dev2", "dev3", "r1", "student_base", "student", "student_rl"]
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_second_run_makes_nothing(finished):
    before = content_hashes(finished)
    stamps = {stage: (finished / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}
    result = run_chain(finished)
    assert result.returncode == 0, result.stderr
    assert content_hashes(finished) == before
    assert {stage: (finished / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES} == stamps


def test_a_chain_killed_several_times_ends_bit_identical(finished, tmp_path):
    """A stage of each kind is made again, under kills; what follows from them is kept if they come out the same."""
    rng, output = random.Random(5), tmp_path / "run"
    shutil.copytree(finished, output)
    for stage in ONE_OF_EACH_KIND:
        shutil.rmtree(output / stage)
    for _ in range(4):
        driver = subprocess.Popen(
            [*R1, f"output={output}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(10, 25))
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    result = run_chain(output)
    assert result.returncode == 0, result.stderr
    assert content_hashes(output) == content_hashes(finished)
