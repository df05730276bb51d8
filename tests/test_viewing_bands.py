"""Expected curves: what leaves its band, what does not, and which runs are compared at all."""

import json
import math
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.config import load
from pipeline.curves import reference_of
from tests.recorded_run import append
from viewing.bands import departure, make_band, student_quantile, trailing_mean
from viewing.reference_curves import CurveWatch, Reference
from viewing.tracking import tracking

TINY = Path(__file__).parents[1] / "recipes" / "tiny"


def a_run(rng, points=40, spread=1.0, shift=0.0):
    """A rising curve with a slope and a wave of its own, and noise of which neighbours share a part."""
    slope, wave, noise, values = rng.gauss(3, spread), rng.gauss(0, spread), 0.0, []
    for i in range(points):
        noise = 0.6 * noise + 0.8 * rng.gauss(0, 1)
        values.append(slope * i / points + wave * math.sin(3 * i / points) + noise + shift * (i >= points // 2))
    return list(range(1, points + 1)), values


def alarms(runs, shift, trials=60):
    rng = random.Random(runs)
    bands = [make_band([a_run(rng) for _ in range(runs)]) for _ in range(trials)]
    return sum(departure("x", band, a_run(rng, shift=shift)) is not None for band in bands if band) / trials


@pytest.mark.parametrize("runs", [2, 4])
def test_a_run_like_the_others_rarely_leaves_and_a_broken_one_does(runs):
    assert alarms(runs, 0.0) <= 0.05
    assert alarms(runs, -30.0) >= 0.6 if runs == 2 else 0.99


def test_one_point_outside_is_not_enough_and_three_are():
    rng = random.Random(0)
    band = make_band([a_run(rng) for _ in range(4)])
    assert band is not None
    steps, values = a_run(rng, spread=0.0)
    for count in (1, 2, 3):
        off = [value + 60 * (20 <= i < 20 + count) for i, value in enumerate(values)]
        smoothed = trailing_mean(off, band.window)
        outside = sum(value > high for value, high in zip(smoothed, band.high, strict=True))
        found = departure("x", band, (steps, off))
        assert (found is not None) == (outside >= 3)
    assert found is not None and found.step == 21 and "above" in str(found)


def test_a_band_needs_two_runs_of_eight_points():
    rng = random.Random(0)
    assert make_band([a_run(rng)]) is None
    assert make_band([a_run(rng, 7), a_run(rng, 7)]) is None
    assert make_band([]) is None


@pytest.mark.parametrize(("freedom", "quantile"), [(2, 4.3027), (4, 2.7764), (10, 2.2281)])
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    assert student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_shipped_curves_fit_the_recipe_that_they_are_shipped_with():
    pipeline = load(TINY / "pipeline.yaml")
    for file in (TINY / "curves").glob("*.json"):
        reference = reference_of(pipeline, file.stem)
        assert reference is not None and reference.bands, f"{file} is of another recipe: r1 save-curves makes it again"
        assert len({run["seed"] for run in reference.runs}) == len(reference.runs)


def test_other_settings_of_a_stage_or_of_one_before_it_are_not_compared():
    assert reference_of(load(TINY / "pipeline.yaml", ["zero.optimizer.lr=1e-3"]), "zero") is None
    assert reference_of(load(TINY / "pipeline.yaml", ["cold_start_sft.optimizer.lr=1e-3"]), "reasoning_rl") is None
    operational = load(TINY / "pipeline.yaml", ["zero.trainer.checkpoint_every=4", "seed=7"])
    assert reference_of(operational, "zero") is not None


def test_a_stage_says_early_that_it_does_not_learn(tmp_path, caplog):
    reference = Reference.read(TINY / "curves" / "zero.json")
    assert reference is not None
    for step in range(1, 18, 4):  # of 56
        append(tmp_path / "metrics.jsonl", {"step": step, "reward/mean": 0.48})
    with tracking(tmp_path, "tiny", reference=reference):
        pass
    assert caplog.text.count("reward/mean is 0.48 from step 9 on, below") == 1
    assert [found.quantity for found in CurveWatch(tmp_path, reference).departures()] == ["reward/mean"]


def finished_run(folder, seed, shift=0.0):
    """A run folder with one finished stage."""
    stage = folder / "zero"
    steps, values = a_run(random.Random(seed), shift=shift)
    append(stage / "metrics.jsonl", *({"step": s, "reward/mean": v} for s, v in zip(steps, values, strict=True)))
    told = {
        "kind": "checkpoint", "stage": "zero", "stage_kind": "grpo", "config": {"group_size": 16}, "parents": {},
        "content_hash": "", "files": {}, "seed": seed,
    }  # fmt: skip
    (stage / "manifest.json").write_text(json.dumps(told))
    stages = {"zero": {"kind": "grpo", "inputs": {}}}
    recipe = str(folder.parent / "recipe.yaml")
    (folder / "pipeline.json").write_text(json.dumps({"recipe": recipe, "stages": stages}))
    return str(folder)


def test_curves_are_made_from_runs_and_compared_with_one(tmp_path):
    def r1(*arguments):
        return CliRunner().invoke(main, list(arguments))

    runs = [finished_run(tmp_path / f"run{seed}", seed) for seed in range(4)]
    folder = str(tmp_path / "curves")
    assert "no expected curves" in r1("report", runs[0], "--compare").output
    made = r1("save-curves", *runs, "--to", folder)
    assert made.exit_code == 0 and "zero.json: 1 quantities" in made.output
    good = r1("report", finished_run(tmp_path / "good", 11), "--compare")
    assert good.exit_code == 0 and "as expected from 4 runs" in good.output
    bad = r1("report", finished_run(tmp_path / "bad", 12, shift=-90), "--compare")
    assert bad.exit_code == 1 and "below the" in bad.output
    same = r1("save-curves", runs[0], finished_run(tmp_path / "again", 0), "--to", folder)
    assert same.exit_code == 2 and "same seed" in same.output
    assert r1("save-curves", runs[0], "--to", folder).exit_code == 2
