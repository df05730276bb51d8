"""The whole chain with vLLM sampling: `r1 run recipes/tiny/smoke_vllm.yaml`."""

import subprocess
import sys
from pathlib import Path

import pytest

from training.run_log import read_log

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.chain
def test_the_chain_on_vllm(tmp_path):
    """Every completion from vLLM on CPU, and the policy that trains is the one that sampled, in every step."""
    pytest.importorskip("vllm")
    recipe, output = ROOT / "recipes/tiny/smoke_vllm.yaml", tmp_path / "run"
    command = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), f"output={output}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    assert (output / "evaluate" / "manifest.json").exists()
    for stage in ("zero", "reasoning_rl", "general_rl", "student_rl"):
        rows = read_log(output / stage / "metrics.jsonl")
        assert max(row["mismatch/abs_mean"] for row in rows if "mismatch/abs_mean" in row) < 1e-5, stage
        assert max(row["sync/probe_abs_max"] for row in rows if "sync/probe_abs_max" in row) < 1e-4, stage
