"""benchmarks/gpu_fp8.py in small on a CPU: minutes of a GPU must not be lost to a fault of the script."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PARTS = ("peak", "quantisers", "gemms", "linears", "experts", "layers", "training_step")

pytestmark = pytest.mark.slow


def measure(out: Path, *options: str) -> dict:
    command = [sys.executable, "benchmarks/gpu_fp8.py", "--device", "cpu", "--small", "--out", str(out), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("benchmark") / "all.json")


@pytest.fixture(scope="module")
def steps(result):
    return {line["subject"]: line for line in result["training_step"]}


@pytest.mark.parametrize("part", PARTS)
def test_every_line_has_numbers_that_make_sense(result, part):
    assert result[part]
    for line in result[part]:
        assert "error" not in line, line
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float)), line
        if "seconds" in line:
            assert 0 < line["min"] <= line["seconds"] <= line["max"]
        assert ("tflops" in line) == ("share_of_peak" in line) and line.get("share_of_peak", 1) > 0
        if part != "quantisers":
            assert line["tflops"] > 0


def test_the_fastest_products_are_the_peak(result):
    for fp8 in (False, True):
        lines = [line for line in result["peak"] if (line["subject"] != "bfloat16") == fp8]
        assert max(line["share_of_peak"] for line in lines) == 1


def test_fp8_rounds_and_is_not_wrong(result):
    """3.7 % for a product of normal data, as everywhere; more where one is made of another's result."""
    off = [line["against_float64"] for line in result["gemms"] if line["subject"] == "reference"]
    assert len(off) == 4 and all(0.02 < each < 0.05 for each in off)
    assert all(line["against_reference"] < 0.01 for line in result["gemms"] if line["subject"] == "reference")
    fp8 = [line for part in ("linears", "layers") for line in result[part] if line["subject"] != "bfloat16"]
    assert len(fp8) == 6
    assert all(0.01 < line[key] < 0.12 for line in fp8 for key in ("output_off", "dx_off", "dw_off") if key in line)


def test_layers_and_steps_count_their_products(result, steps):
    """By hand, of the small shapes: 6 per active parameter and token, and attention's."""
    tokens, hidden, inner, heads = 256, 256, 128, 4
    moe = 8 * hidden + (1 + 4) * 3 * hidden * inner  # a router of 8 experts, one shared expert and 4 of 8
    mla = hidden * 128 + 128 * heads * 48 + hidden * (128 + 16) + 128 * heads * 64 + heads * 32 * hidden
    attention = 3 * 2 * heads * (48 + 32) * 4 * (64 * 65 / 2)  # four sequences of 64
    flops = {line["layer"]: line["tflops"] * 1e12 * line["seconds"] for line in result["layers"]}
    assert flops["moe"] == pytest.approx(6 * tokens * moe)
    assert flops["mla"] == pytest.approx(6 * tokens * mla + attention)
    active = 3 * mla + 3 * hidden * 384 + 2 * moe + 512 * hidden  # one dense layer, two with experts, the head
    for line in steps.values():
        assert line["active"] == active and line["tokens"] == 2 * tokens
        counted = 6 * active * line["tokens"] + 2 * 3 * attention  # two rows, three layers
        assert line["tflops"] * 1e12 * line["seconds"] == pytest.approx(counted)


def test_steps_of_both_precisions_start_from_the_same_weights_and_batch(steps):
    assert list(steps) == ["bfloat16", "fp8"]
    assert {line["recompute"] for line in steps.values()} == {"norms_and_up_projections"}
    assert steps["bfloat16"]["loss_gap"] == steps["bfloat16"]["gradient_norm_gap"] == 0
    assert steps["bfloat16"]["loss"] == pytest.approx(math.log(512), rel=0.05)  # random weights know nothing
    assert 0 < abs(steps["fp8"]["loss_gap"]) < 0.0025
    assert abs(steps["fp8"]["gradient_norm_gap"]) < 0.02


def test_some_parts_with_another_recomputation(tmp_path):
    result = measure(tmp_path / "some.json", "--parts", "training_step", "--recompute", "blocks")
    assert [part for part in PARTS if part in result] == ["peak", "training_step"]
    assert [line["recompute"] for line in result["training_step"]] == ["blocks", "blocks"]
