"""One GRPO trainer rank, in this process."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rl.batch import MissingRoutes, NonFiniteLoss, TrainingSequence
from rl.objective import Objective, ObjectiveConfig
from rl.trainer import PolicyTrainer
from rollouts.records import Request, SamplingParams, Support
from rollouts.transformers_generator import TransformersGenerator
from training import head_chunks
from training.config import OptimizerConfig

V3_2 = {"preset": "v3_2", "routing_replay": "off"}
MIS = {"correction": "mis_sequence", "correction_floor": 0.0, "correction_cap": "none"}


def make_trainer(checkpoint, row_tokens=128, **objective) -> PolicyTrainer:
    return PolicyTrainer(
        str(checkpoint), OptimizerConfig(lr=1e-3), objective=ObjectiveConfig(**objective).resolve(), temperature=0.8,
        row_tokens=row_tokens, device="cpu",
    )  # fmt: skip


def sequences(count=6):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        prompt, completion = rng.integers(8, 300, rng.integers(2, 9)), rng.integers(8, 300, rng.integers(1, 20))
        made.append(
            TrainingSequence(
                prompt_ids=prompt, completion_ids=completion, advantage=float(rng.choice([-1, 1])),
                sampling_logprobs=np.full(len(completion), -5.8, dtype=np.float32),
            )
        )  # fmt: skip
    return made


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def expected_logprobs(trainer, sequence, whole=False) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(trainer.tokenizer.name_or_path, attn_implementation="eager").eval()
    ids = torch.tensor([*sequence.prompt_ids, *sequence.completion_ids])[None]
    logits = model(ids).logits[0, len(sequence.prompt_ids) - 1 : -1].double() / 0.8
    if whole:
        return torch.log_softmax(logits, -1).numpy()
    return torch.log_softmax(logits, -1)[range(len(sequence.completion_ids)), sequence.completion_ids].numpy()


def test_old_logprobs_are_tempered_and_in_the_order_given(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, row_tokens=40)
    for sequence in trainer.annotate(sequences()):
        np.testing.assert_allclose(sequence.old_logprobs, expected_logprobs(trainer, sequence), atol=2e-5)
        np.testing.assert_array_equal(sequence.ref_logprobs, sequence.old_logprobs)  # no step yet


def drawn_from(sequence, seed=0) -> Support:
    """Three tokens or fewer for each token, itself among them."""
    rng = np.random.default_rng(seed)
    sets = [np.unique([token, *rng.integers(8, 300, rng.integers(0, 3))]) for token in sequence.completion_ids]
    return Support(ids=np.concatenate(sets).astype(np.int32), sizes=np.array([len(kept) for kept in sets], np.int32))


def test_all_logprobs_are_over_the_tokens_that_could_be_drawn(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, row_tokens=40, preset="v3_2", routing_replay="off")
    batch = [replace(s, support=drawn_from(s)) for s in sequences()]
    annotated = trainer.annotate(batch)
    trainer.reference_is_policy = False
    for sequence, other in zip(annotated, trainer.annotate(batch), strict=True):
        logits = expected_logprobs(trainer, sequence, whole=True)
        kept = np.split(sequence.support.ids, np.cumsum(sequence.support.sizes)[:-1])
        expected = [
            row[token] - np.logaddexp.reduce(row[ids])
            for row, token, ids in zip(logits, sequence.completion_ids, kept, strict=True)
        ]
        np.testing.assert_allclose(sequence.old_logprobs, expected, atol=2e-5)
        np.testing.assert_allclose(other.ref_logprobs, expected, atol=2e-5)
    metrics = trainer.update(annotated, lr=1e-3, max_new_tokens=20)
    assert metrics["loss/importance_ratio_max"] == pytest.approx(1, abs=1e-5)
    assert 0 < metrics["policy/entropy"] < np.log(3)


def test_the_reference_stays_while_the_policy_moves(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint)
    first = trainer.annotate(sequences())
    trainer.update(first, lr=1e-2, max_new_tokens=20)
    second = trainer.annotate(sequences())
    for before, after in zip(first, second, strict=True):
        np.testing.assert_allclose(after.ref_logprobs, before.old_logprobs, atol=1e-5)
        assert not np.allclose(after.old_logprobs, before.old_logprobs, atol=1e-3)
    trainer.refresh_reference()
    for sequence in trainer.annotate(sequences()):
        np.testing.assert_array_equal(sequence.ref_logprobs, sequence.old_logprobs)


def test_an_objective_without_kl_keeps_no_reference(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, preset="dr_grpo")
    assert trainer.reference is None
    assert all(s.ref_logprobs is None for s in trainer.annotate(sequences()))


@pytest.mark.parametrize("correction", ["none", "tis_sequence", "mis_token"])
def test_rows_change_nothing(tiny_checkpoint, correction):
    """Loss, gradient norm and every metric of a step over many short rows equal those over a single long row."""
    short, long = (
        trainer.update(trainer.annotate(sequences()), lr=1e-3, max_new_tokens=20)
        for trainer in (make_trainer(tiny_checkpoint, tokens, correction=correction) for tokens in (30, 1000))
    )
    assert short == pytest.approx(long, rel=1e-4, abs=1e-6)
    assert ("correction/ess" in short) == (correction != "none")


def test_a_step_raises_what_was_good_and_lowers_what_was_bad(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint)
    before = trainer.annotate(sequences())
    trainer.update(before, lr=1e-3, max_new_tokens=20)
    for old, new in zip(before, trainer.annotate(sequences()), strict=True):
        assert np.sign((new.old_logprobs - old.old_logprobs).mean()) == old.advantage


def test_a_resumed_trainer_goes_on_bit_for_bit(tiny_checkpoint, tmp_path):
    whole = make_trainer(tiny_checkpoint)
    for _ in range(2):
        whole.update(whole.annotate(sequences()), lr=1e-3, max_new_tokens=20)
    whole.begin_save(str(tmp_path))
    whole.finish_save()
    whole.update(whole.annotate(sequences()), lr=1e-3, max_new_tokens=20)
    resumed = make_trainer(tiny_checkpoint)
    resumed.load_state(str(tmp_path))
    resumed.update(resumed.annotate(sequences()), lr=1e-3, max_new_tokens=20)
    assert same(weights(whole), weights(resumed))
    assert same(whole.reference.state_dict(), resumed.reference.state_dict())


@pytest.mark.parametrize("broken", ["old_logprobs", "ref_logprobs", "sampling_logprobs"])
def test_a_step_on_garbage_is_refused(tiny_checkpoint, broken):
    trainer = make_trainer(tiny_checkpoint, preset="v3_2", routing_replay="off")  # reads all three
    trainer.update(trainer.annotate(sequences()), lr=1e-3, max_new_tokens=20)
    batch = trainer.annotate(sequences())
    before, steps = weights(trainer), trainer.optimizer.steps
    values = getattr(batch[2], broken).copy()
    values[0] = np.nan
    with pytest.raises(NonFiniteLoss):
        trainer.update([*batch[:2], replace(batch[2], **{broken: values}), *batch[3:]], lr=1e-3, max_new_tokens=20)
    assert same(weights(trainer), before)
    assert trainer.optimizer.steps == steps
    assert all(p.grad is None for p in trainer.model.parameters())
    assert np.isfinite(trainer.update(batch, lr=1e-3, max_new_tokens=20)["loss/policy"])  # and it can go on


def test_sequences_longer_than_a_row_are_trained_on_whole(tiny_checkpoint):
    short, long = (make_trainer(tiny_checkpoint, row_tokens=tokens).annotate(sequences()) for tokens in (5, 1000))
    for one, other in zip(short, long, strict=True):
        assert np.allclose(one.old_logprobs, other.old_logprobs, atol=1e-5)


# --- routing replay ---


def sampled(checkpoint, dtype="float32") -> list[TrainingSequence]:
    """Completions of a generator in `dtype`, with the experts it chose."""
    rng = np.random.default_rng(4)
    requests = [Request(key=str(i), prompt_ids=rng.integers(8, 300, rng.integers(2, 9)).tolist()) for i in range(16)]
    params = SamplingParams(max_new_tokens=20, temperature=0.8, group_size=2, return_routed_experts=True)
    groups = TransformersGenerator(str(checkpoint), dtype=dtype, device="cpu").sample(requests, params)
    return [
        TrainingSequence(
            prompt_ids=np.array(group.prompt_ids), completion_ids=c.token_ids, advantage=advantage,
            sampling_logprobs=c.sampling_logprobs, routed_experts=c.routed_experts,
        )
        for group in groups for c, advantage in zip(group.completions, (1.0, -1.0), strict=True)
    ]  # fmt: skip


def test_replay_takes_the_routing_out_of_the_mismatch_of_two_precisions(tiny_checkpoint):
    """A generator in bfloat16, a trainer in float32: without replay some tokens meet other experts."""
    sequences = sampled(tiny_checkpoint, "bfloat16")
    step = {}
    for mode in ("off", "rollout"):
        trainer = make_trainer(tiny_checkpoint, routing_replay=mode)
        step[mode] = trainer.update(trainer.annotate(sequences), lr=1e-3, max_new_tokens=20)
    assert step["off"]["mismatch/routing_agreement"] == step["off"]["mismatch/routing_agreement_used"] < 0.999
    assert step["rollout"]["mismatch/routing_agreement"] < 0.999
    assert step["rollout"]["mismatch/routing_agreement_used"] == 1.0
    assert step["rollout"]["mismatch/abs_mean"] < step["off"]["mismatch/abs_mean"]
    assert step["rollout"]["mismatch/kl"] < step["off"]["mismatch/kl"]
    assert step["rollout"]["loss/importance_ratio_max"] == pytest.approx(1, abs=1e-5)  # old and policy: same experts


def test_replay_between_equal_precisions_changes_nothing_but_rounding(tiny_checkpoint):
    sequences = sampled(tiny_checkpoint)
    step = {}
    for mode in ("off", "rollout", "trainer"):
        trainer = make_trainer(tiny_checkpoint, routing_replay=mode)
        step[mode] = trainer.update(trainer.annotate(sequences), lr=1e-3, max_new_tokens=20)
        assert step[mode]["mismatch/routing_agreement"] > 0.999
    assert step["rollout"] == pytest.approx(step["off"], rel=1e-3, abs=1e-5)
    assert step["trainer"] == pytest.approx(step["off"], rel=1e-3, abs=1e-5)


def test_the_trainers_own_routing_is_kept_over_its_steps(tiny_checkpoint):
    """R2: recorded with the old logprobs, forced when the weights have moved and the routers would choose others."""
    plain = [replace(sequence, routed_experts=None) for sequence in sampled(tiny_checkpoint)]
    trainer = make_trainer(tiny_checkpoint, row_tokens=40, routing_replay="trainer")
    batch = trainer.annotate(plain)
    assert all(s.routed_experts.dtype == np.uint8 and len(s.routed_experts) == len(s) - 1 for s in batch)
    first, second = (
        trainer.update(batch[:16], lr=3e-2, max_new_tokens=20),
        trainer.update(batch[16:], lr=3e-2, max_new_tokens=20),
    )
    assert first["mismatch/routing_agreement_used"] == second["mismatch/routing_agreement_used"] == 1.0
    assert "mismatch/routing_agreement" not in first  # there is no generator's choice to agree with
    assert any(
        (a.routed_experts != b.routed_experts).any() for a, b in zip(batch, trainer.annotate(plain), strict=True)
    )


def test_the_reference_routes_by_itself(tiny_checkpoint):
    """Also while it is the policy: its logprobs do not depend on what is forced."""
    sequences = sampled(tiny_checkpoint, "bfloat16")
    free, forced = (make_trainer(tiny_checkpoint, routing_replay=m).annotate(sequences) for m in ("off", "rollout"))
    for one, other in zip(free, forced, strict=True):
        np.testing.assert_array_equal(one.ref_logprobs, other.ref_logprobs)
    assert any(not np.allclose(a.old_logprobs, b.old_logprobs, atol=1e-3) for a, b in zip(free, forced, strict=True))


def test_completions_without_routes_are_refused_by_rollout_replay(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, preset="v3_2")
    batch = sampled(tiny_checkpoint)
    batch[3] = replace(batch[3], routed_experts=None)
    with pytest.raises(MissingRoutes, match="1 of 32 completions came without routed experts"):
        trainer.annotate(batch)


def test_a_failing_pass_leaves_the_model_to_route_by_itself(tiny_checkpoint):
    trainer = make_trainer(tiny_checkpoint, routing_replay="rollout")
    batch = trainer.annotate(sampled(tiny_checkpoint))
    with pytest.raises(ValueError, match="ref_T"):
        trainer.update([replace(s, ref_logprobs=None) for s in batch], lr=1e-3, max_new_tokens=20)
    assert not any(m._forward_pre_hooks for m in trainer.model.modules())


@pytest.mark.parametrize("mode", ["rollout", "trainer"])
def test_a_dense_model_trains_as_without_replay(llama_checkpoint, mode):
    off, on = (make_trainer(llama_checkpoint, routing_replay=m) for m in ("off", mode))
    assert on.update(on.annotate(sequences()), lr=1e-3, max_new_tokens=20) == off.update(
        off.annotate(sequences()), lr=1e-3, max_new_tokens=20
    )
    assert same(weights(on), weights(off))


@pytest.mark.parametrize(
    "settings", [{"preset": "r1", "entropy_coef": 0.1}, {"preset": "dapo"}, {"preset": "dr_grpo"}, V3_2, MIS], ids=str
)
def test_a_loss_made_chunk_by_chunk_is_that_of_the_whole_row(tiny_checkpoint, monkeypatch, settings):
    """Chunks of 3 tokens cut sequences apart; each token keeps the weight it has in its whole sequence."""
    assert ObjectiveConfig(**settings).resolve().made_in_chunks
    outcomes = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(Objective, "made_in_chunks", property(lambda objective: False))
        else:
            monkeypatch.setitem(head_chunks.CHUNK_ELEMENTS, "cpu", 3 * 340)
        trainer = make_trainer(tiny_checkpoint, row_tokens=40, **settings)
        batch = trainer.annotate(sequences())
        gradients = {}
        step = trainer.optimizer.step

        def noted(lr, trainer=trainer, gradients=gradients, step=step):
            gradients |= {n: p.grad.clone() for n, p in trainer.optimizer.parameters.items() if p.grad is not None}
            return step(lr)

        trainer.optimizer.step = noted
        outcomes.append((trainer.update(batch, lr=1e-3, max_new_tokens=20), gradients))
    (metrics, gradients), (expected_metrics, expected) = outcomes
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5 * float(expected[name].abs().max()), rtol=1e-3)


def test_losses_that_look_at_whole_sequences_are_not_cut():
    assert not ObjectiveConfig(preset="gspo").resolve().made_in_chunks
