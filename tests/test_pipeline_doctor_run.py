"""`r1 doctor RUN` on runs that are made, failed, stalled, or none."""

import json

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.config import load
from pipeline.run import run
from tests.test_pipeline_stall_causes import LOADING, actor, report
from tests.toy_stages import TOY_KINDS, write_recipes
from training.stage import StageError


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "toy"


def make(tmp_path, *overrides: str) -> None:
    recipe = tmp_path / "recipes" / "pipeline.yaml"
    recipe = recipe if recipe.exists() else write_recipes(tmp_path / "recipes")
    run(load(recipe, [f"output={tmp_path}/runs/toy", *overrides], TOY_KINDS), kinds=TOY_KINDS)


def doctor(folder) -> str:
    result = CliRunner().invoke(main, ["doctor", str(folder)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_that_is_made_needs_nothing(tmp_path, folder):
    make(tmp_path)
    said = doctor(folder)
    assert "4 of 4 stages made" in said
    assert said.endswith(f"next: nothing: everything is made; r1 report {folder} shows it\n")


def test_a_failed_run_says_its_last_error_its_starts_and_how_to_go_on(tmp_path, folder):
    for _ in range(2):
        with pytest.raises(StageError):
            make(tmp_path, "zero.fail_at=3")
    said = doctor(folder)
    assert "1 of 4 stages made" in said and "zero (toy_train): cut off" in said and "started 2 times" in said
    assert "last error" in said and "stage 'zero' failed" in said
    assert f"r1 run {tmp_path}/recipes/pipeline.yaml ...) goes on with zero" in said


def test_what_the_same_command_cannot_mend_is_to_be_mended_first(tmp_path, folder):
    with pytest.raises(StageError):
        make(tmp_path, "zero.fail_at=3")
    progress = json.loads((folder / "zero" / ".progress.json").read_text())
    for retry, first in ((False, "mend the last error of zero; then the command"), (True, "the command")):
        progress["error"]["retry"] = retry
        (folder / "zero" / ".progress.json").write_text(json.dumps(progress))
        assert f"next: {first} that started it (r1 run " in doctor(folder)


def test_counts_memory_and_stalls_are_read(tmp_path, folder):
    with pytest.raises(StageError):
        make(tmp_path, "zero.fail_at=3")
    stage = folder / "zero"
    row = {"experience/sampled": 64, "experience/unscorable": 8, "reward/accuracy_errors": 8}
    (stage / "metrics.jsonl").write_text("".join(json.dumps({"step": s} | row) + "\n" for s in (1, 2)))
    sizes = {"largest_pss_mib": 1234.5}
    (stage / "memory.jsonl").write_text(json.dumps({"actors": {"Rank": sizes}}) + "\n" + '{"actors": {"Ra')
    (stage / "stalls").mkdir()
    late = report(actor("Rank", 7, LOADING, state="stopped")) | {"since": "2026-01-01", "phase": "x", "deadline_s": 5}
    (stage / "stalls" / "1.json").write_text(json.dumps(late))
    (stage / "stalls" / "2.json").write_text("{torn")
    said = doctor(folder)
    assert "completions: 128 sampled, 16 unscorable (12.5%)" in said
    assert "judgements that failed: accuracy_errors 16" in said
    assert "most memory: Rank 1,234 MiB" in said
    assert "stalled since 2026-01-01: x, 5 s without Rank 7" in said and "-> kill -CONT 7" in said
    assert "2.json cannot be read" in said


def test_a_stage_in_fp8_says_which_layers_are(tmp_path, folder):
    make(tmp_path)
    products = [f"model.model.layers.{n}.mlp.up_proj" for n in range(6)]
    layers = [{"module": "model.model.embed_tokens", "parameters": 250, "computes_in": "float32"}]
    layers += [{"module": name, "parameters": 125, "computes_in": "fp8"} for name in products]
    (folder / "zero" / "precision.json").write_text(json.dumps(layers))
    said = doctor(folder)
    assert "computed in float32: 25.0% of the weights, 1 layers: embed_tokens" in said
    assert "computed in fp8: 75.0% of the weights, 6 layers: up_proj" in said
    for odd in ("null", "[1]", "{", '[{"computes_in": "fp8"}]', '[{"module": 3, "parameters": 1, "computes_in": 2}]'):
        (folder / "zero" / "precision.json").write_text(odd)
        assert "precision.json cannot be read" in doctor(folder)


def test_what_is_no_run_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert result.exit_code == 2 and "is not a run folder" in result.output
