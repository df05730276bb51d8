"""`r1 plan`: shipped recipes on clusters that are not there, and what it says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.errors import RecipeError
from pipeline.plan_command import as_data, make_plan, read_assumptions, read_pipeline
from planning.calibration import Calibration, calibration_file
from tests.planning_fixture import CALIBRATION

ROOT = Path(__file__).parents[1]
DEEPSEEK = ROOT / "recipes/deepseek_v3/pipeline.yaml"
PAPER = {"zero": 101e3, "r1": 41e3}  # H800-hours (DeepSeek-R1, B.4.4, Table 7)
# As the recipe would serve on devices of 80 GB, with weights of one byte: docs/planning.md.
SERVED = [
    "all.generator.replicas=16",
    "all.generator.tensor_parallel=32",
    "all.generator.engine_args={quantization: fp8}",
]


def planned(recipe: Path, overrides=(), cluster="64x8xH800", assume=(), price=None):
    pipeline, absent = read_pipeline(recipe, overrides)
    return make_plan(pipeline, cluster, read_assumptions(assume), price, absent)


def hours(made) -> dict[str, float]:
    found = {stage.name: made.device_hours(stage.total_s) for stage in made.stages}
    return {"zero": found["zero"], "r1": found["reasoning_rl"] + found["general_rl"]}


@pytest.fixture(scope="module")
def as_written():
    return planned(DEEPSEEK, [], "64x8xH800", [])


def test_deepseek_v3_is_planned_without_its_checkpoint_and_data(as_written):
    assert len(as_written.absent) > 5
    (general,) = (said for said in as_written.absent if "general_dataset" in said)
    assert "general_dataset: there is no " in general and "deepseek_v3/data/general_conversations.jsonl" in general
    assert {stage.name for stage in as_written.stages} >= {"zero", "reasoning_rl", "general_rl", "helpful_rm"}
    zero = as_written.stages[0]
    assert zero.steps == 10_400 and zero.devices == 512
    assert zero.model == "DeepSeek-V3-Base, 671.0B"


def test_as_deepseek_serves_the_plan_is_within_a_quarter_of_the_papers_hours():
    served = hours(planned(DEEPSEEK, SERVED, "64x8xH800", ["paper"]))
    for name, stated in PAPER.items():
        assert served[name] == pytest.approx(stated, rel=0.25), name


def test_with_default_assumptions_the_recipe_takes_about_twice_as_long(as_written):
    found = hours(as_written)
    for name, stated in PAPER.items():
        assert 1.5 < found[name] / stated < 3, name


def test_the_recipe_as_written_does_not_fit_and_what_would_is_said(as_written):
    cold_start = next(stage for stage in as_written.stages if stage.name == "cold_start_data")
    assert not cold_start.fits  # 671B in bfloat16 over 8 devices are 156 GiB on each
    change = as_written.changes["cold_start_data"]
    assert str(change) == "generator.replicas=16 generator.tensor_parallel=32 generator.nodes=4"
    assert "trainer.mesh.data=512 trainer.mesh.expert=64 trainer.mesh.pipeline=1" in str(as_written.changes["zero"])
    fixed = planned(DEEPSEEK, [f"cold_start_data.{key}={value}" for key, value in change.settings], "64x8xH800", [])
    assert next(stage for stage in fixed.stages if stage.name == "cold_start_data").fits


@pytest.mark.parametrize("device", ["H200", "H800"])
def test_a_recipe_laid_out_for_a_device_fits(device):
    made = planned(DEEPSEEK.with_name(f"{device.lower()}.yaml"), cluster=f"64x8x{device}")
    assert [stage.name for stage in made.stages if not stage.fits] == []
    assert not any("larger than a node" in note for stage in made.stages for note in stage.notes)


def test_judges_and_reward_models_take_memory_beside_the_rest():
    h800 = DEEPSEEK.with_name("h800.yaml")
    stages = {stage.name: stage for stage in planned(h800).stages}
    scored, judged = stages["general_rl"], stages["rejection_sampling"]
    memory = scored.room / 0.92
    one_of_two = 0.15 * memory  # the engine's share; there are 512 devices for the 128 that both ask for
    for moment in ("sampling", "training"):
        assert scored.moments[moment].parts["judges and reward models"] == pytest.approx(one_of_two)
    assert judged.moments["sampling"].parts["judges and reward models"] == pytest.approx(0.45 * memory)
    engine = {"replicas": 32, "tensor_parallel": 16, "nodes": 2}
    wide = [
        f"rejection_sampling.{key}.{name}={n}"
        for key in ("generator", "judges.generator")
        for name, n in engine.items()
    ]
    made = planned(h800, wide)
    assert not next(stage for stage in made.stages if stage.name == "rejection_sampling").fits
    assert "judges and reward models" not in stages["zero"].moments["training"].parts


def test_an_engine_takes_its_share_of_a_gpu_whatever_it_needs():
    h800, share = DEEPSEEK.with_name("h800.yaml"), "generator.engine_args.gpu_memory_utilization"
    vllms = f"zero.{share}=0.92"  # its default
    assert planned(h800, [vllms]).stages[0].fits  # the trainer is away
    whole = planned(h800, [vllms, "zero.optimizer.offload=moments"])
    assert not whole.stages[0].fits and str(whole.changes["zero"]) == f"{share}=0.79"
    kept = whole.stages[0].moments["sampling"].parts["kept by the engine"]
    assert whole.stages[0].moments["sampling"].total - kept < whole.stages[0].room
    fewer = planned(h800, [f"zero.{share}=0.6"]).stages[0]
    (said,) = [note for note in fewer.notes if "fit a replica's cache" in note]
    assert fewer.fits and int(said.split()[0]) < 42


def test_an_engine_that_no_node_holds_is_said_to_be_too_large():
    wide = planned(DEEPSEEK, ["all.generator.replicas=32", "all.generator.tensor_parallel=16"])
    sentence = "an engine on 16 devices is larger than a node of 8: set its nodes to 2"
    assert sentence in wide.stages[0].notes
    spread = planned(
        DEEPSEEK, ["all.generator.replicas=32", "all.generator.tensor_parallel=16", "all.generator.nodes=2"]
    )
    assert sentence not in spread.stages[0].notes


def test_a_data_set_has_the_rows_of_the_stage_that_makes_it(as_written):
    data = next(stage for stage in as_written.stages if stage.name == "rejection_sampling")
    sft = next(stage for stage in as_written.stages if stage.name == "curated_sft")
    assert data.leaves is not None and data.leaves.rows == 800_000
    assert sft.tokens["trained"] == pytest.approx(2 * 800_000 * data.leaves.tokens)


def test_what_a_run_has_measured_is_taken_in_place_of_an_assumption(tmp_path):
    settings = [f"output={tmp_path}"]
    before = planned(ROOT / "recipes/tiny/zero.yaml", settings, "H100", [])
    (tmp_path / "zero").mkdir()
    lines = [
        {"step": 1, "rollout/length_mean": 60.0},
        {"step": 2, "loss/policy": 0.1},
        {"step": 5, "rollout/length_mean": 50.0},
    ]
    (tmp_path / "zero/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = planned(ROOT / "recipes/tiny/zero.yaml", settings, "H100", [])
    assert "completion_share" in before.stages[0].taken_for_granted
    assert "completion_share" not in after.stages[0].taken_for_granted
    assert after.stages[0].tokens["sampled"] == 56 * 32 * 8 * 55


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster", "3xB9000"], "write nodes x devices x name, as 64x8xH800"),
        (["--assume", "completion_share"], "write NAME=VALUE, or paper"),
        (["--assume", "speed=2"], "there is no such assumption; known: completion_share"),
        ([], "this machine has not been measured"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_sentence(arguments, said, monkeypatch, tmp_path):
    monkeypatch.setenv("R1_CALIBRATION", str(tmp_path / "none.json"))
    result = CliRunner().invoke(main, ["plan", str(ROOT / "recipes/tiny/zero.yaml"), *arguments])
    assert result.exit_code == 2 and said in result.stderr


def test_a_model_that_nothing_is_known_of_is_refused(tmp_path):
    (tmp_path / "zero.yaml").write_text("stage: grpo\n")
    (tmp_path / "pipeline.yaml").write_text(
        "name: x\nstages: {zero: {recipe: zero.yaml, inputs: {policy: lama-3.1-8b}}}\n"
    )
    with pytest.raises(RecipeError, match=r"the planner knows no 'lama-3.1-8b'; .*; did you mean 'llama-3.1-8b'"):
        planned(tmp_path / "pipeline.yaml", [], "H100", [])


def test_this_machine_is_planned_by_its_calibration(monkeypatch, tmp_path):
    monkeypatch.setenv("R1_CALIBRATION", str(tmp_path / "here.json"))
    monkeypatch.setenv("COLUMNS", "80")
    CALIBRATION.write(calibration_file())
    assert Calibration.read(calibration_file()) == CALIBRATION
    result = CliRunner().invoke(main, ["plan", str(ROOT / "recipes/tiny/pipeline.yaml")])
    assert result.exit_code == 0, result.output
    assert "tiny on this machine (a test, 2 cores)" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    data = json.loads(CliRunner().invoke(main, ["plan", str(ROOT / "recipes/tiny/zero.yaml"), "--json"]).stdout)
    assert data["stages"][0]["fits"] and data["stages"][0]["seconds"]["update"] > 0


@pytest.mark.parametrize("recipe", ["students/qwen2.5_math_1.5b", "students/llama3.1_8b", "tiny/smoke"])
def test_other_shipped_recipes_are_planned(recipe):
    made = planned(ROOT / f"recipes/{recipe}.yaml", [], "8xH100", [], price=2.0)
    data = as_data(made)
    assert data["cost"] == pytest.approx(2 * data["device_hours"]) and data["total_s"] > 0
