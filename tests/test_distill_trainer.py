"""A student's trainer rank and its teachers, in this process: what is learnt is the KL at the right places."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distill.config import KLConfig, OnPolicyDistillConfig, TeacherProcessConfig
from distill.taught import Taught, Told, pack_taught, target_places
from distill.teacher_process import Teacher, tokenizers_differ
from distill.trainer import DistillTrainer
from models.checkpoint import load_model, load_tokenizer, save_model
from sft.batch import Example
from tests.conftest import make_checkpoint
from training.config import OptimizerConfig

STILL = OptimizerConfig(lr=1e-3)


@pytest.fixture
def teacher_checkpoint(llama_checkpoint):
    return llama_checkpoint


def examples(count=5):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length = int(rng.integers(6, 20))
        mask = rng.random(length) < 0.6
        mask[-1] = True
        made.append(Example(token_ids=rng.integers(8, 300, length), loss_mask=mask))
    return made


def make_trainer(checkpoint, kl, teachers, **settings) -> DistillTrainer:
    return DistillTrainer(str(checkpoint), STILL, kl=kl, teachers=teachers, row_tokens=40, device="cpu", **settings)


@torch.no_grad()
def logprobs(checkpoint, example, temperature) -> torch.Tensor:
    """[C, V] in float64 of transformers' own model, one example at a time: no packing."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    logits = model(torch.from_numpy(example.token_ids)[None]).logits[0].double() / temperature
    return torch.log_softmax(logits, -1)[target_places(example) - 1]


def expected_kl(student, teacher, batch, direction, temperature) -> float:
    kls = []
    for example in batch:
        q, p = (logprobs(checkpoint, example, temperature) for checkpoint in (student, teacher))
        a, b = (q, p) if direction == "reverse" else (p, q)
        kls.append((a.exp() * (a - b)).sum(-1))
    return torch.cat(kls).mean().item()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("top_k", [None, 340])
def test_the_loss_is_the_mean_kl_over_the_targets(tiny_checkpoint, teacher_checkpoint, direction, top_k):
    kl = KLConfig(direction=direction, temperature=1.3, top_k=top_k)
    batch = examples()
    said = Teacher(str(teacher_checkpoint), TeacherProcessConfig(row_tokens=64), kl).tell(batch)
    taught = [Taught(example=e, told={"teacher": (told, 1.0)}) for e, told in zip(batch, said, strict=True)]
    trainer = make_trainer(tiny_checkpoint, kl, {"teacher": str(teacher_checkpoint)})
    metrics = trainer.step(pack_taught(taught, 40), lr=0.0)
    expected = expected_kl(tiny_checkpoint, teacher_checkpoint, batch, direction, 1.3)
    assert metrics["loss/kl"] == pytest.approx(expected, rel=1e-3)
    assert metrics["kl/teacher"] == pytest.approx(metrics["loss/kl"])
    assert metrics["tokens/targets"] == sum(len(target_places(example)) for example in batch)


def test_each_domain_listens_to_its_own_teachers(tiny_checkpoint, teacher_checkpoint):
    """One sample hears the other model at weight 2, another the student itself, which has nothing to say."""
    kl, batch = KLConfig(), examples(2)
    folders = {"other": str(teacher_checkpoint), "itself": str(tiny_checkpoint)}
    told = {name: Teacher(folder, TeacherProcessConfig(), kl).tell(batch) for name, folder in folders.items()}
    taught = [
        Taught(example=batch[0], told={"other": (told["other"][0], 2.0)}),
        Taught(example=batch[1], told={"itself": (told["itself"][1], 1.0)}),
    ]
    metrics = make_trainer(tiny_checkpoint, kl, folders).step(pack_taught(taught, 80), lr=0.0)
    other = expected_kl(tiny_checkpoint, teacher_checkpoint, batch[:1], "reverse", 1.0)
    first, second = (len(target_places(example)) for example in batch)
    assert metrics["kl/other"] == pytest.approx(other, rel=1e-3)
    assert metrics["kl/itself"] == pytest.approx(0, abs=1e-5)
    assert metrics["loss/kl"] == pytest.approx(2 * other * first / (first + second), rel=1e-3)


def test_steps_bring_the_student_to_its_teacher(tiny_checkpoint, teacher_checkpoint):
    kl, batch = KLConfig(), examples(4)
    said = Teacher(str(teacher_checkpoint), TeacherProcessConfig(), kl).tell(batch)
    rows = pack_taught([Taught(example=e, told={"t": (s, 1.0)}) for e, s in zip(batch, said, strict=True)], 128)
    trainer = make_trainer(tiny_checkpoint, kl, {"t": str(teacher_checkpoint)})
    losses = [trainer.step(rows, lr=3e-3)["loss/kl"] for _ in range(25)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("top_k", [None, 20])
def test_heads_of_different_sizes_are_compared_over_the_tokens(tiny_checkpoint, llama_checkpoint, tmp_path, top_k):
    """Qwen2.5's 7B has 152,064 rows and its 1.5B 151,936, of the same tokenizer."""
    padded = tmp_path / "padded"
    model = load_model(llama_checkpoint)
    tokens = model.config.vocab_size
    model.resize_token_embeddings(tokens + 24)
    with torch.no_grad():
        model.lm_head.weight[tokens:] = 5.0  # padding that would win where it counted
    save_model(padded, model, load_tokenizer(llama_checkpoint))
    batch, kl, losses = examples(3), KLConfig(top_k=top_k), []
    for teacher in (llama_checkpoint, padded):
        said = Teacher(str(teacher), TeacherProcessConfig(), kl).tell(batch)
        rows = pack_taught([Taught(example=e, told={"t": (s, 1.0)}) for e, s in zip(batch, said, strict=True)], 64)
        losses.append(make_trainer(tiny_checkpoint, kl, {"t": str(teacher)}).step(rows, lr=0.0)["loss/kl"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_more_tokens_than_there_are_is_all_of_them(llama_checkpoint):
    (told,) = Teacher(str(llama_checkpoint), TeacherProcessConfig(), KLConfig(top_k=10_000)).tell(examples(1))
    np.testing.assert_allclose(np.exp(told.logprobs).sum(-1), 1, rtol=1e-5)


def test_a_row_without_lectures_takes_part(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, KLConfig(top_k=4), {"t": ""})
    sample = Taught(example=examples(1)[0], told={})
    assert trainer.step(pack_taught([sample], 40), lr=1e-3)["loss/kl"] == 0


def test_hidden_states_and_logprobs_of_several_samples_share_a_lecture():
    parts = [Told(hidden=np.full((n, 3), n, np.float32)) for n in (2, 1)]
    joined = Told.joined(parts)
    assert joined.ids is None
    np.testing.assert_array_equal(joined.hidden[:, 0], [2, 2, 1])


def test_other_tokens_are_refused_with_a_way_out(tiny_checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", vocab_size=330)
    fault = tokenizers_differ(str(other), str(tiny_checkpoint))
    assert "probabilities cannot be compared; distil the teacher's text instead" in fault
    assert tokenizers_differ(str(tiny_checkpoint), str(tiny_checkpoint)) is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"teacher": {"engine": "vllm"}}, "set kl.top_k"),
        ({"teacher": {"engine": "vllm"}, "kl": {"top_k": 8, "temperature": 2.0}}, "at temperature 1"),
        ({"teacher": {"engine_args": {"seed": 1}}}, "is for engine vllm"),
        ({"weights": {"math": {"one": 0.0}}}, "no teacher of domain math has a weight above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        OnPolicyDistillConfig(**settings)


def test_unlisted_domains_listen_to_all_alike():
    config = OnPolicyDistillConfig(weights={"code": {"coder": 3.0, "writer": 0.0}})
    assert config.weights_of("math", ("coder", "writer")) == {"coder": 0.5, "writer": 0.5}
    assert config.weights_of("code", ("coder", "writer")) == {"coder": 3.0}
