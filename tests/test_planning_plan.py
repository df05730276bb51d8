"""Plans of stages: which way each setting moves memory and time, and what they are made of."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planning.architecture import Architecture
from planning.assumptions import Assumptions
from planning.devices import parse_cluster
from planning.fit import smallest_change, with_settings
from planning.host_memory import host_memory
from planning.machines import GpuMachine, LocalMachine
from planning.mesh import chunk_sizes, heaviest_rank, pipeline_efficiency
from planning.plan import plan_stage
from planning.published import DEEPSEEK_V3, SHAPES
from planning.speed import mean_seen
from planning.stage_workloads import workload
from planning.workload import DatasetSize, Request
from rl.config import GRPOConfig
from sft.config import SFTConfig
from tests.planning_fixture import CALIBRATION
from training.mesh import MeshConfig

V3 = Architecture.read(DEEPSEEK_V3, "DeepSeek-V3")
LLAMA = Architecture.read(SHAPES["llama-3.1-8b"], "Llama-3.1-8B")
TINY = Architecture.read(json.loads((Path(__file__).parents[1] / "recipes/tiny/base/config.json").read_text()), "base")
ASSUMED = Assumptions()
NODE = GpuMachine(parse_cluster("8xH100"), ASSUMED)
ROWS = DatasetSize(rows=6400, tokens=2048, longest=8192, known=True)


def sft(model=LLAMA, dataset=ROWS, **trainer) -> Request:
    config = SFTConfig.model_validate({"batch_size": 64, "epochs": 2, "trainer": trainer, "mtp_weight": 0})
    return Request(name="sft", kind="sft", config=config, models={"policy": model}, dataset=dataset)


def grpo(model=TINY, **settings) -> Request:
    small = {"steps": 32, "mini_batches": 4, "questions_per_step": 8, "group_size": 8}
    config = GRPOConfig.model_validate(small | {"rollout": {"max_new_tokens": 96}} | settings)
    return Request(name="zero", kind="grpo", config=config, models={"policy": model})


def test_a_step_of_dense_training_costs_six_flops_per_parameter_and_token():
    plan = plan_stage(sft(), NODE, ASSUMED)
    assert plan.steps == 200 and plan.tokens["trained"] == 6400 * 2048 * 2
    matrices = LLAMA.parameters - LLAMA.embedding_parameters
    expected = 6 * matrices * plan.tokens["trained"]
    assert expected < plan.flops < 1.1 * expected  # attention's scores are on top


def test_memory_of_one_device_without_tricks_is_sixteen_bytes_a_parameter_and_activations():
    training = plan_stage(sft(row_tokens=64), NODE, ASSUMED).moments["training"].parts
    weights = sum(training[part] for part in ("weights", "gradients", "moments"))
    assert weights == 16 * LLAMA.parameters
    assert training["activations"] > 0


def test_an_average_of_the_weights_takes_memory_of_the_host():
    request = sft(TINY, mesh={"data": 2})
    averaging = replace(request, config=with_settings(request.config, {"optimizer.ema_decay": 0.9}))
    plain, more = (plan_stage(one, LocalMachine(CALIBRATION), ASSUMED).peak for one in (request, averaging))
    assert more.total - plain.total == more.parts["average"] == plain.parts["moments"]  # as much: 8 bytes a parameter
    assert plan_stage(averaging, NODE, ASSUMED).peak == plan_stage(request, NODE, ASSUMED).peak


@pytest.mark.parametrize(
    "saves",
    [{"recompute": "blocks"}, {"recompute": "norms_and_up_projections"}, {"row_tokens": 512}, {"precision": "bfloat16"},
     {"mesh": {"data": 8}}, {"lora": {}}],
)  # fmt: skip
def test_what_saves_memory_saves_memory(saves):
    short = replace(ROWS, tokens=400, longest=500)
    before = plan_stage(sft(dataset=short, row_tokens=8192), NODE, ASSUMED)
    after = plan_stage(sft(dataset=short, **{"row_tokens": 8192} | saves), NODE, ASSUMED)
    assert after.peak.total < before.peak.total


def test_recomputing_blocks_costs_a_third_more_time():
    plain = plan_stage(sft(mesh={"data": 8}), NODE, ASSUMED)
    again = plan_stage(sft(mesh={"data": 8}, recompute="blocks"), NODE, ASSUMED)
    computing = plain.total_s - plain.steps * ASSUMED.step_overhead_s
    more = again.total_s - plain.total_s
    assert more == pytest.approx(computing / 3, rel=0.12)  # the head is not computed again


def test_more_devices_take_less_time_and_the_same_flops():
    one, eight = (plan_stage(sft(mesh={"data": n}), NODE, ASSUMED) for n in (1, 8))
    assert one.flops == eight.flops and eight.total_s < one.total_s / 4


def test_a_stage_that_does_not_fit_is_told_the_smallest_change():
    request = sft(row_tokens=8192, precision="bfloat16")
    plan = plan_stage(request, NODE, ASSUMED)
    assert not plan.fits
    change = smallest_change(request, NODE, ASSUMED)
    assert change is not None
    config = with_settings(request.config, dict(change.settings))
    assert plan_stage(replace(request, config=config), NODE, ASSUMED).fits
    assert "trainer.mesh.data" in str(change) or "moments" in str(change)


def test_a_change_that_is_enough_alone_is_not_joined_by_others():
    request = grpo(LLAMA, generator={"engine": "vllm", "dtype": "bfloat16", "replicas": 8, "sleep": True},
                   trainer={"mesh": {"data": 8}, "precision": "bfloat16", "row_tokens": 16384, "recompute": "none"},
                   rollout={"max_new_tokens": 15_000})  # fmt: skip
    assert not plan_stage(request, NODE, ASSUMED).fits
    share = "generator.engine_args.gpu_memory_utilization=0.73"  # the trainer's states take the rest
    assert str(smallest_change(request, NODE, ASSUMED)) == f"trainer.recompute=blocks {share}"


def test_a_model_that_no_setting_makes_fit_is_said_to_be_one():
    assert smallest_change(sft(V3), GpuMachine(parse_cluster("RTX4090"), ASSUMED), ASSUMED) is None


def test_settings_that_a_config_refuses_are_no_change():
    config = grpo(sample_in_trainer=True).config
    assert with_settings(config, {"trainer.mesh.data": 2}) is None
    assert with_settings(config, {"trainer.row_tokens": 1}) is None
    assert with_settings(config, {"trainer.nonsense": 1}) is None


def test_longer_completions_take_longer_and_are_what_was_measured():
    short, long = (replace(grpo(), measured_length=tokens) for tokens in (20.0, 80.0))
    plans = [plan_stage(request, LocalMachine(CALIBRATION), ASSUMED) for request in (short, long)]
    assert plans[0].tokens["sampled"] == 32 * 64 * 20
    for phase in ("decode", "logprobs", "update"):
        assert plans[0].seconds[phase] < plans[1].seconds[phase]


def test_sampling_in_the_trainer_syncs_nothing_and_needs_one_process():
    apart = plan_stage(grpo(), LocalMachine(CALIBRATION), ASSUMED)
    inside = plan_stage(grpo(sample_in_trainer=True), LocalMachine(CALIBRATION), ASSUMED)
    assert "sync" in apart.seconds and "sync" not in inside.seconds
    assert "generator weights" not in inside.moments["sampling"].parts
    assert inside.moments["sampling"].parts["cache"] == 256 * (96 + 32) * TINY.expanded_cache * 4


def test_prompts_are_as_long_as_was_said_or_else_as_small_models_have_them():
    def read(**told) -> float:
        return plan_stage(grpo(), NODE, Assumptions(**told)).tokens["read"]

    assert read() == read(prompt_tokens=round(grpo().models["policy"].context / 16))
    assert read(prompt_tokens=100) > read(prompt_tokens=50)


def test_completions_grow_from_the_step_that_the_recipe_says():
    plan = plan_stage(grpo(max_new_tokens_from={16: 192}), LocalMachine(CALIBRATION), ASSUMED)
    assert plan.tokens["sampled"] == 16 * 64 * 24 + 16 * 64 * 48


def test_reference_logprobs_are_read_but_for_the_first_batch_after_a_refresh():
    read = [plan_stage(grpo(reference_every=every), NODE, ASSUMED).tokens["read"] for every in (4, 400)]
    assert read[1] == pytest.approx(read[0] * (2 - 4 / 400))


def test_a_pipeline_of_ranks_holds_every_layer_once():
    assert chunk_sizes(61, 8) == [3, *[4] * 13, 3, 3] and sum(chunk_sizes(61, 8)) == 61
    mesh = MeshConfig(data=64, expert=64, pipeline=8)
    held = heaviest_rank(V3, mesh, True)
    assert held.dense + held.routed >= V3.parameters / 8
    whole = heaviest_rank(V3, MeshConfig(), True)
    assert whole.dense + whole.routed == V3.parameters


@pytest.mark.parametrize(("ranks", "rows", "waits"), [(4, 32, 0.05), (4, 8, 0.19), (8, 64, 0.07), (1, 1, 0)])
def test_ranks_of_a_pipeline_wait_as_its_plan_says(ranks, rows, waits):  # docs/training.md
    assert 1 - pipeline_efficiency(MeshConfig(pipeline=ranks), rows) == pytest.approx(waits, abs=0.015)


def test_a_token_sees_half_of_its_sequence_on_average():
    from planning.lengths import Lengths

    assert mean_seen(100, Lengths(300, 300, 0)) == 200
    assert mean_seen(0, Lengths(300, 1200, 0.8)) > 150  # long ones have more tokens


def test_stages_without_a_model_take_nothing():
    plan = plan_stage(Request(name="i", kind="import", config=None, models={}), NODE, ASSUMED)
    assert plan.total_s == 0 and plan.fits and not plan.model


def test_the_host_of_a_node_keeps_copies_and_whom_others_sent_away():
    """Llama 3.1 8B on one node: bytes per parameter, over all ranks."""
    settings = {
        "generator": {"engine": "vllm", "dtype": "bfloat16", "replicas": 8, "sleep": True},
        "trainer": {"mesh": {"data": 8}, "precision": "bfloat16"},
        "optimizer": {"offload": "all", "ema_decay": 0.9},
        "objective": {"kl_coef": 0.01},
    }
    memory = host_memory(workload(grpo(LLAMA, **settings), ASSUMED), NODE)
    expected = {
        "checkpoint copy": 4 + 8 + 4 + 4,  # weights, moments, reference, average
        "average": 8,
        "offloaded": 4 + 8 + 4,
        "sleeping engines": 8 * 2,  # one on each device
    }
    assert memory.parts == pytest.approx({name: size * LLAMA.parameters for name, size in expected.items()}, rel=1e-6)
    (said,) = [note for note in plan_stage(grpo(LLAMA, **settings), NODE, ASSUMED).notes if "host memory" in note]
    assert said.startswith("host memory of a node: ") and "sleeping engines" in said
    assert not host_memory(workload(grpo(LLAMA), ASSUMED), LocalMachine(CALIBRATION)).parts
