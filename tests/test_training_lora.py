"""LoRA: adapters are trained, everything else is at rest, and whoever gets the result sees plain merged weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from distill.config import DistillConfig
from models.checkpoint import load_model
from rl.batch import TrainingSequence
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rl.trainer import PolicyTrainer
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import TransformersGenerator
from sft.batch import Example, pack_examples
from sft.config import PretrainConfig, SFTConfig
from sft.preference_config import RewardModelConfig
from sft.trainer import SupervisedTrainer
from tests.architectures import make_architecture
from training.config import LoRAConfig, OptimizerConfig
from training.lora import Adapters, is_adapter
from training.state import stored_names

LORA = LoRAConfig(rank=4, alpha=8)
ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
MODELS = pytest.mark.parametrize("checkpoint", ["tied_checkpoint", "tiny_checkpoint"])


@pytest.fixture
def path(checkpoint, request) -> Path:
    return request.getfixturevalue(checkpoint)


def supervised(checkpoint, lora=LORA, seed=1, **optimizer) -> SupervisedTrainer:
    settings = OptimizerConfig(lr=1e-2, **optimizer)
    return SupervisedTrainer(str(checkpoint), settings, mtp=True, device="cpu", lora=lora, seed=seed)


def policy(checkpoint, lora=LORA) -> PolicyTrainer:
    return PolicyTrainer(
        str(checkpoint), OptimizerConfig(lr=1e-2), objective=ObjectiveConfig().resolve(), temperature=1.0,
        row_tokens=128, device="cpu", lora=lora, seed=1,
    )  # fmt: skip


def rows(seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 30, 6)
    examples = [Example(token_ids=rng.integers(8, 300, n), loss_mask=rng.random(n) < 0.8) for n in lengths]
    return pack_examples(examples, 64)


def step(trainer: SupervisedTrainer, seed=0) -> dict[str, float]:
    return trainer.step(rows(seed), 1e-2, 0.1, 0.0)


def sequences(seed=0) -> list[TrainingSequence]:
    rng = np.random.default_rng(seed)
    made = []
    for advantage in (1.0, -1.0, 1.0, -1.0):
        prompt, completion = rng.integers(8, 300, rng.integers(2, 9)), rng.integers(8, 300, rng.integers(1, 20))
        sampling = np.full(len(completion), -5.8, dtype=np.float32)
        made.append(
            TrainingSequence(
                prompt_ids=prompt, completion_ids=completion, advantage=advantage, sampling_logprobs=sampling
            )
        )
    return made


def taught(checkpoint, steps=2, **settings) -> SupervisedTrainer:
    trainer = supervised(checkpoint, **settings)
    for seed in range(steps):
        step(trainer, seed)
    return trainer


def sent(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.weights()}


# --- what is trained ---------------------------------------------------------------------------------------------


@MODELS
def test_weights_at_rest_have_neither_gradient_nor_optimizer_state(path):
    trainer = supervised(path)
    before = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    for row in rows():
        trainer.next_token_losses(row)[0].backward()
    assert {n for n, p in trainer.policy.named_parameters() if p.grad is not None} == {
        n for n, _ in trainer.policy.named_parameters() if is_adapter(n)
    }
    step(trainer)
    moments = {n.removeprefix("optimizer.").partition("/")[0] for n in trainer.optimizer.state()} - {"steps"}
    assert moments and all(map(is_adapter, moments))
    for name, tensor in trainer.policy.state_dict().items():
        assert torch.equal(tensor, before[name]) != is_adapter(name) or name.endswith("lora_A.default.weight"), name


def test_the_policy_begins_as_what_it_was_and_its_seed_is_all_the_chance_there_is(tiny_checkpoint):
    (row, *_) = rows()
    losses = [supervised(tiny_checkpoint, lora).next_token_losses(row)[0].item() for lora in (None, LORA)]
    assert losses[0] == losses[1]
    torch.manual_seed(7)
    one, same, other = (sent(taught(tiny_checkpoint, seed=seed)) for seed in (1, 1, 2))
    name = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    "optimizer", [{}, {"moments": "bfloat16"}, {"ema_decay": 0.5}, {"offload": "moments"}], ids=str
)
def test_it_learns_with_every_setting_of_adamw(llama_checkpoint, optimizer):
    trainer = supervised(llama_checkpoint, **optimizer)
    losses = [step(trainer)["loss/nll"] for _ in range(6)]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("recompute", ["blocks", "norms_and_up_projections"])
def test_recomputed_activations_give_the_same_adapters(tiny_checkpoint, recompute):
    again = SupervisedTrainer(
        str(tiny_checkpoint), OptimizerConfig(lr=1e-2), device="cpu", lora=LORA, seed=1, recompute=recompute
    )
    for seed in range(2):
        step(again, seed)
    expected = sent(taught(tiny_checkpoint))
    assert all(torch.equal(weight, expected[name]) for name, weight in sent(again).items())


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("deepseek_v32", set(ATTENTION)),
    ],
)
def test_all_linear_leaves_experts_routers_indexers_and_head_out(model_type, expected, tmp_path):
    model = load_model(make_architecture(tmp_path / "checkpoint", model_type))
    Adapters(model, LORA, seed=0)
    adapted = {name.partition(".lora_A.")[0] for name, p in model.named_parameters() if ".lora_A." in name}
    assert {name.rpartition(".")[2] for name in adapted} == expected
    assert all(name.split(".")[3] in ("self_attn", "mlp") and "indexer" not in name for name in adapted)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if is_adapter(n)
    }


# --- what comes out ----------------------------------------------------------------------------------------------


@MODELS
def test_merged_weights_are_w_plus_alpha_over_rank_times_b_a(path, tmp_path):
    trainer = taught(path)
    trainer.save_checkpoint(str(tmp_path))
    merged, base = load_file(tmp_path / "model.safetensors"), load_file(path / "model.safetensors")
    assert merged.keys() == base.keys()
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in merged.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            change = 8 / 4 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            assert change.any() and torch.linalg.matrix_rank(weight - base[name], rtol=1e-4) == 4, name
            torch.testing.assert_close(weight, base[name] + change, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(weight, base[name]), name  # embedding and head too, tied or not


@MODELS
def test_peft_makes_the_same_model_of_the_base_and_the_adapter(path, tmp_path):
    from peft import PeftModel

    taught(path).save_checkpoint(str(tmp_path))
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    found = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().state_dict()
    expected = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-6, atol=1e-6)


@MODELS
def test_a_result_is_written_as_without_adapters_and_alike_every_time(path, tmp_path):
    for folder, lora in (("plain", None), ("one", LORA), ("other", LORA)):
        taught(path, lora=lora).save_checkpoint(str(tmp_path / folder), "bfloat16")
    plain, one, other = (tmp_path / folder for folder in ("plain", "one", "other"))
    names = {file.name for file in plain.iterdir()}
    assert {file.name for file in one.iterdir()} == names | {"adapter"}
    assert (plain / "config.json").read_bytes() == (one / "config.json").read_bytes()
    shapes = [{n: (t.shape, t.dtype) for n, t in load_file(f / "model.safetensors").items()} for f in (plain, one)]
    assert shapes[0] == shapes[1]
    for file in ("model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes()
    described = json.loads((one / "adapter" / "adapter_config.json").read_text())
    assert (described["r"], described["lora_alpha"], described["peft_type"]) == (4, 8, "LORA")


def test_the_average_of_adapters_is_merged_too(llama_checkpoint, tmp_path):
    trainer = taught(llama_checkpoint, ema_decay=0.5)
    before = sent(trainer)
    trainer.save_average(str(tmp_path))
    name = "model.layers.0.mlp.up_proj.weight"
    base, average = (load_file(folder / "model.safetensors")[name] for folder in (llama_checkpoint, tmp_path))
    assert not torch.equal(average, base) and not torch.equal(average, before[name])
    assert all(torch.equal(weight, before[n]) for n, weight in sent(trainer).items())


def test_a_resumed_run_is_the_uninterrupted_one_and_saves_adapters_alone(tiny_checkpoint, tmp_path):
    whole = taught(tiny_checkpoint)
    whole.begin_save(str(tmp_path))
    whole.finish_save()
    resumed = supervised(tiny_checkpoint, seed=5)  # what it draws is replaced
    resumed.load_state(str(tmp_path))
    names = {name for name in stored_names(tmp_path) if name.startswith("policy.")}
    assert names and all(map(is_adapter, names))
    assert step(whole, 2) == step(resumed, 2)
    expected = sent(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in sent(resumed).items())


# --- RL ----------------------------------------------------------------------------------------------------------


@MODELS
def test_the_reference_is_the_start_policy_until_it_is_refreshed(path):
    trainer, start = policy(path), policy(path, lora=None)
    first = trainer.annotate(sequences())
    trainer.update(first, 1e-2, 20)
    second = trainer.annotate(sequences())
    for before, after, plain in zip(first, second, start.annotate(sequences()), strict=True):
        np.testing.assert_array_equal(after.ref_logprobs, plain.ref_logprobs)
        np.testing.assert_array_equal(before.old_logprobs, plain.old_logprobs)
        assert np.abs(after.old_logprobs - after.ref_logprobs).max() > 1e-3
    trainer.refresh_reference()
    trainer.update(second, 1e-2, 20)
    third = trainer.annotate(sequences())
    for before, after in zip(second, third, strict=True):
        np.testing.assert_array_equal(after.ref_logprobs, before.old_logprobs)
        assert np.abs(after.old_logprobs - after.ref_logprobs).max() > 1e-3


def test_a_resumed_policy_has_its_reference(tiny_checkpoint, tmp_path):
    whole, resumed = policy(tiny_checkpoint), policy(tiny_checkpoint)
    whole.update(whole.annotate(sequences()), 1e-2, 20)
    whole.refresh_reference()
    whole.update(whole.annotate(sequences(1)), 1e-2, 20)
    whole.begin_save(str(tmp_path))
    whole.finish_save()
    resumed.load_state(str(tmp_path))
    found, expected = (trainer.annotate(sequences(2)) for trainer in (resumed, whole))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.old_logprobs, other.old_logprobs)
        np.testing.assert_array_equal(one.ref_logprobs, other.ref_logprobs)
    assert resumed.update(found, 1e-2, 20) == whole.update(expected, 1e-2, 20)


@MODELS
def test_generators_are_sent_merged_weights_and_sample_the_policy_that_is_trained(path):
    trainer, generator = policy(path), TransformersGenerator(str(path), device="cpu")
    trainer.update(trainer.annotate(sequences()), 1e-2, 20)
    weights = sent(trainer)
    assert trainer.weight_shapes() == {name: tuple(weight.shape) for name, weight in weights.items()}
    assert weights.keys() == generator.weight_shapes().keys()
    generator.load_weights({name: weight.numpy() for name, weight in weights.items()}, version=1)
    assert trainer.weight_checksums() == generator.held_checksums()
    requests = [Request(key=str(i), prompt_ids=[9, 40, 300, 12 + i]) for i in range(6)]
    params = SamplingParams(temperature=1.0, max_new_tokens=12)
    trainer.set_version(1)
    for groups in (generator.stream(requests, params, 1), trainer.stream(requests, params, 1)):
        apart = []
        for group in groups:
            prompt = [9, 40, 300, 12 + int(group.key)]
            (scores,) = trainer.score([[*prompt, *group.completions[0].token_ids]])
            apart.append(np.abs(scores[3:] - group.completions[0].sampling_logprobs))
        # Rounding may let a close call of a router fall the other way, after which a completion differs by hundredths.
        assert np.quantile(np.concatenate(apart), 0.8) < 1e-5


# --- what is refused ---------------------------------------------------------------------------------------------

STAGES = [SFTConfig, DistillConfig, GRPOConfig]


@pytest.mark.parametrize("stage", STAGES)
def test_lora_is_a_setting_of_every_stage_that_trains_a_policy(stage):
    lora = stage.model_validate({"trainer": {"lora": {"rank": 1, "targets": ["q_proj", "v_proj"]}}}).trainer.lora
    assert (lora.rank, lora.alpha, lora.targets) == (1, 32, ("q_proj", "v_proj"))
    assert stage.model_validate({"trainer": {"lora": {}}}).trainer.lora.targets == "all-linear"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        ({"precision": "fp8"}, "lora is not there with precision fp8; set precision to bfloat16"),
        ({"mesh": {"pipeline": 2}}, "lora is not there in a pipeline; set mesh.pipeline to 1"),
        ({"lora": {"targets": []}}, "targets"),
        ({"lora": {"rank": 0}}, "rank"),
        ({"lora": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_what_adapters_cannot_do_is_refused(stage, trainer, sentence):
    with pytest.raises(ValidationError, match=sentence):
        stage.model_validate({"trainer": {"lora": {}} | trainer})


@pytest.mark.parametrize(
    ("stage", "key"), [(SFTConfig, "mtp_weight"), (GRPOConfig, "mtp_weight"), (SFTConfig, "bias_speed")]
)
def test_a_weight_for_what_is_at_rest_is_refused(stage, key):
    with pytest.raises(ValidationError, match=f"{key} is set while trainer.lora leaves all but its adapters at rest"):
        stage.model_validate({key: 0.1, "trainer": {"lora": {}}})
    stage.model_validate({key: 0.0, "trainer": {"lora": {}}})


@pytest.mark.parametrize("stage", STAGES)
def test_muon_is_refused(stage):
    with pytest.raises(ValidationError, match="muon is made for whole weights"):
        stage.model_validate({"optimizer": {"algorithm": "muon"}, "trainer": {"lora": {}}})


def test_stages_that_need_all_weights_refuse_it():
    for stage in (PretrainConfig, RewardModelConfig):
        with pytest.raises(ValidationError, match=r"trainer\.lora: a .* leave (it|lora) out"):
            stage.model_validate({"trainer": {"lora": {}}})
    with pytest.raises(ValidationError, match=r"trains indexers, which trainer\.lora leaves at rest"):
        SFTConfig.model_validate({"indexer": "joint", "trainer": {"lora": {}}})


def test_a_target_that_is_not_there_is_named_beside_those_that_are(tiny_checkpoint, v4_checkpoint):
    for target in ("q_proj", "gate_proj", "lm_head", "eh_proj"):
        with pytest.raises(ValueError, match=f"{target} is no linear layer .* there are kv_a_proj_with_mqa, kv_b_proj"):
            supervised(tiny_checkpoint, LoRAConfig(targets=("o_proj", target)))
    with pytest.raises(ValueError, match="DeepSeek-V4 cannot have adapters"):
        supervised(v4_checkpoint)
