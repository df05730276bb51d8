"""V3.2's indexers, trained: against transformers' own sparse attention and a float64 reference by loops."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from models import indexer as indexer_module
from models.attention import PackedLayout
from models.checkpoint import load_model
from models.indexer import TaughtLayout, awake, wake
from sft.batch import Example, pack_examples
from sft.config import SFTConfig
from sft.trainer import SupervisedTrainer
from tests.architectures import make_architecture, reference
from training.config import OptimizerConfig, TrainerConfig

TOP_K = 12
LENGTHS = [5, 40, 1, 37, 128, 12]  # blocks with padding; fewer tokens than TOP_K, and more


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """16 heads, so that no score is exactly 0 because no head sees anything: which of several zeros is chosen is
    nobody's business."""
    shape = {"index_topk": TOP_K, "index_n_heads": 16, "index_head_dim": 64, "num_hidden_layers": 2}
    return make_architecture(tmp_path_factory.mktemp("v32") / "checkpoint", "deepseek_v32", **shape)


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 300, (n,), generator=generator) for n in LENGTHS]


def taught(checkpoint, stage, texts, dtype=torch.float64):
    """(model, logits of the packed row, what it has found)"""
    model = load_model(checkpoint, dtype=dtype, indexed=True).eval()
    if dtype == torch.float64:  # which the grouped product does not take
        model.set_experts_implementation("eager")
    wake(model, stage)
    layout = TaughtLayout.over(PackedLayout.from_lengths([len(t) for t in texts]), stage)
    positions = torch.cat([torch.arange(len(t)) for t in texts])
    output = model(input_ids=torch.cat(texts)[None], position_ids=positions[None], use_cache=False, layout=layout)
    return model, output.logits[0], layout.lessons


# --- the reference ---


def divergence_by_loops(indexer, hidden, latent, rotary, attention, stage) -> torch.Tensor:
    """Section 2.1 of the paper, one query at a time. attention [H, T, T] is the model's own."""
    cos, sin = (part[0] for part in rotary)
    width, turned = indexer.head_dim, indexer.qk_rope_head_dim

    def rotate(x, t):
        first, second = x[..., : turned // 2], x[..., turned // 2 : turned]
        turn = torch.cat([-second, first], dim=-1)
        return torch.cat([x[..., :turned] * cos[t] + turn * sin[t], x[..., turned:]], dim=-1)

    total = hidden.new_zeros(())
    keys = [rotate(indexer.k_norm(indexer.wk(hidden[t])), t) for t in range(len(hidden))]
    for t in range(len(hidden)):
        queries = rotate(indexer.wq_b(latent[t]).view(-1, width), t)
        weights = indexer.weights_proj(hidden[t]) / len(queries) ** 0.5
        scores = (weights[:, None] * torch.relu(queries @ torch.stack(keys[: t + 1]).T / width**0.5)).sum(dim=0)
        seen = list(range(t + 1))
        if stage == "joint" and t + 1 > TOP_K:
            seen = sorted(scores.detach().argsort(descending=True)[:TOP_K].tolist())
        p = attention[:, t, seen].sum(dim=0)
        p = p / p.sum()
        q = torch.softmax(scores[seen], dim=0)
        total = total + (torch.special.xlogy(p, p) - p * q.log()).sum()
    return total


def expected(checkpoint, stage, text) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss over all layers, and the gradient of every weight of an indexer."""
    model = reference(str(checkpoint)).double()
    model.set_experts_implementation("eager")
    inputs = {}
    for layer in model.model.layers:
        indexer = layer.self_attn.indexer
        indexer.index_topk = TOP_K if stage == "joint" else len(text)
        indexer.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module.layer_idx, args))
    attentions = model(text[None], use_cache=False, output_attentions=True).attentions
    total = torch.zeros((), dtype=torch.float64)
    for layer, attention in zip(model.model.layers, attentions, strict=True):
        hidden, latent, rotary = inputs[layer.self_attn.layer_idx][:3]
        total = total + divergence_by_loops(
            layer.self_attn.indexer, hidden[0].detach(), latent[0].detach(), rotary, attention[0].detach(), stage
        )
    model.zero_grad()
    total.backward()
    return total.item(), {n: p.grad for n, p in model.named_parameters() if ".indexer." in n}


# --- what is computed ---


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_loss_and_every_gradient_are_those_of_loops_in_float64(checkpoint, stage):
    texts = [t for t in sequences() if len(t) <= 40]
    model, _, found = taught(checkpoint, stage, texts)
    loss = torch.stack(found.losses).sum()
    loss.backward()
    parts = [expected(checkpoint, stage, text) for text in texts]
    assert loss.item() == pytest.approx(sum(part for part, _ in parts), rel=1e-6)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == parts[0][1].keys() and len(gradients) == 2 * 5
    for name, gradient in gradients.items():
        wanted = sum(of_text[name] for _, of_text in parts)
        assert (gradient - wanted).norm() <= 1e-6 * wanted.norm(), name


def test_joint_attention_is_transformers_own_sparse_attention(checkpoint):
    own = reference(str(checkpoint))
    with torch.no_grad():
        wanted = torch.cat([own(text[None], use_cache=False).logits[0] for text in sequences()])
        _, sparse, _ = taught(checkpoint, "joint", sequences(), torch.float32)
        _, dense, _ = taught(checkpoint, "warmup", sequences(), torch.float32)
    assert (sparse - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert (dense - wanted).abs().max() >= 1e-2 * wanted.abs().max()


def test_warmup_attends_as_a_model_whose_indexers_rest(checkpoint, monkeypatch):
    monkeypatch.setattr("models.checkpoint.check_architecture", lambda config, indexed: None)
    layout = PackedLayout.from_lengths(LENGTHS)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with torch.no_grad():
        ids = torch.cat(sequences())[None]
        resting = load_model(checkpoint).eval()(ids, position_ids=positions, use_cache=False, layout=layout).logits[0]
        assert torch.equal(taught(checkpoint, "warmup", sequences(), torch.float32)[1], resting)


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_a_packed_row_teaches_what_its_sequences_teach(checkpoint, stage, monkeypatch):
    """Also when few queries are scored at a time."""
    model, _, found = taught(checkpoint, stage, sequences())
    torch.stack(found.losses).sum().backward()
    monkeypatch.setattr(indexer_module, "_SCORES", 40000)
    each = [taught(checkpoint, stage, [text]) for text in sequences()]
    for _, _, one in each:
        torch.stack(one.losses).sum().backward()
    apart = torch.stack([torch.stack(one.losses) for _, _, one in each]).sum(dim=0)
    torch.testing.assert_close(torch.stack(found.losses), apart, rtol=1e-9, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            wanted = sum(dict(other.named_parameters())[name].grad for other, _, _ in each)
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-7, atol=1e-12)
    if stage == "warmup":
        assert torch.equal(
            torch.stack(found.recalled).sum(0), torch.stack([c for _, _, o in each for c in o.recalled]).sum(0)
        )


def test_the_lesson_reaches_indexers_alone(checkpoint):
    model, logits, found = taught(checkpoint, "joint", sequences())
    torch.stack(found.losses).sum().backward(retain_graph=True)
    learners = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learners == {name for name, _ in model.named_parameters() if ".indexer." in name}
    model.zero_grad()
    logits.square().sum().backward()
    learners = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(".indexer." in name for name in learners) and "model.layers.0.self_attn.q_b_proj.weight" in learners


def test_recall_counts_the_tokens_that_attention_looks_at_most():
    """One sequence of 6 tokens, 2 to be chosen: queries 2 to 5 have a choice."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 6, 4, generator=generator) for _ in range(2))
    index = indexer_module.Index(q.transpose(1, 2), k[:, 0], torch.ones(1, 6, 1))
    real = torch.ones(1, 6, dtype=torch.bool)
    lesson = indexer_module._Lesson(q, k, 1.0, real, None, 2)
    for queries in (slice(0, 4), slice(4, 6)):
        lesson.teach(index, queries, indexer_module.Index(*map(torch.zeros_like, index)))
    scores = (q @ k.transpose(2, 3))[0, 0]
    both = 0
    for t in range(2, 6):
        best = set(scores[t, : t + 1].topk(2).indices.tolist())
        both += len(best & set(scores[t, : t + 1].relu().topk(2).indices.tolist()))
    assert lesson.recalled is not None and lesson.recalled.tolist() == [both, 8]


# --- the trainer ---

RNG = np.random.default_rng(0)
ROWS = pack_examples(
    [Example(token_ids=RNG.integers(8, 300, n), loss_mask=np.arange(n) >= 3) for n in (70, 50, 9)], 128
)


def trainer(checkpoint, stage, **settings) -> SupervisedTrainer:
    return SupervisedTrainer(str(checkpoint), OptimizerConfig(lr=1e-2), device="cpu", indexer=stage, **settings)


def weights(policy: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def test_warmup_teaches_indexers_where_attention_looks_and_moves_nothing_else(checkpoint):
    learner = trainer(checkpoint, "warmup")
    before = weights(learner.policy)
    steps = [learner.step(ROWS, 1e-2, mtp_weight=0.0, bias_speed=0.0) for _ in range(25)]
    moved = {name for name, tensor in weights(learner.policy).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".indexer." in name}
    assert steps[-1]["loss/indexer"] < 0.8 * steps[0]["loss/indexer"]
    assert steps[-1]["indexer/recall"] > steps[0]["indexer/recall"] + 0.2
    assert len({metrics["loss/nll"] for metrics in steps}) == 1


def test_joint_training_lowers_both_losses(checkpoint):
    learner = trainer(checkpoint, "joint")
    steps = [learner.step(ROWS, 2e-3, mtp_weight=0.0, bias_speed=0.001, balance_weight=1e-4) for _ in range(8)]
    assert steps[-1]["loss/nll"] < steps[0]["loss/nll"] - 0.05
    assert steps[-1]["loss/indexer"] < steps[0]["loss/indexer"]
    assert "indexer/recall" not in steps[0]  # attention is seen where indexers let it look


@pytest.mark.parametrize("stage", ["warmup", "joint"])
def test_recomputed_layers_teach_the_same(checkpoint, stage):
    kept, again = trainer(checkpoint, stage), trainer(checkpoint, stage, recompute="blocks")
    for _ in range(2):
        one, other = (t.step(ROWS, 1e-3, mtp_weight=0.0, bias_speed=0.0) for t in (kept, again))
        assert one == other
    assert all(torch.equal(a, b) for a, b in zip(weights(kept.policy).values(), weights(again.policy).values()))  # noqa: B905


def test_the_mtp_layer_has_an_indexer_too(tmp_path):
    from models.checkpoint import load_tokenizer, save_model
    from models.mtp import MTPModule

    shape = {"index_topk": TOP_K, "index_n_heads": 16, "index_head_dim": 64, "num_nextn_predict_layers": 1}
    source = make_architecture(tmp_path / "source", "deepseek_v32", **shape)
    model = load_model(source, indexed=True)
    mtp = MTPModule(model.config)
    mtp.init_weights(0.1, torch.Generator().manual_seed(0))
    save_model(tmp_path / "checkpoint", model, load_tokenizer(source), mtp)
    learner = trainer(tmp_path / "checkpoint", "warmup", mtp=True)
    before = weights(learner.policy)
    learner.step(ROWS, 1e-2, mtp_weight=0.1, bias_speed=0.0)
    moved = {name for name, tensor in weights(learner.policy).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".indexer." in name} and any(name.startswith("mtp.") for name in moved)


# --- what is refused ---


def test_frozen_indexers_rest_and_keep_their_reach(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=rf"attends to at most {TOP_K} earlier tokens \(index_topk\)"):
        trainer(checkpoint, "frozen")
    within = make_architecture(tmp_path / "within", "deepseek_v32")
    assert awake(trainer(within, "frozen").policy) == []
    assert len(awake(trainer(within, "joint").policy)) == 3


def test_what_cannot_be_taught_is_refused(llama_checkpoint):
    with pytest.raises(ValueError, match="of deepseek_v32 alone are trained here, and this is a llama model"):
        trainer(llama_checkpoint, "warmup")
    with pytest.raises(ValidationError, match="warmup trains indexers alone, and bias_speed moves routers"):
        SFTConfig(indexer="warmup", bias_speed=0.001)
    with pytest.raises(ValidationError, match=r"joint needs whole rows and layers; set trainer\.mesh\.pipeline to 1"):
        SFTConfig.model_validate({"indexer": "joint", "trainer": {"mesh": {"pipeline": 2}}})
    with pytest.raises(ValidationError, match="norms_and_up_projections would keep"):
        SFTConfig(indexer="joint", trainer=TrainerConfig(recompute="norms_and_up_projections"))
