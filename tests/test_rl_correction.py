"""Corrections for mismatch and staleness against loops over tokens, and against expectations enumerated exactly."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rl.correction import correction_weights
from rl.loss import policy_loss
from rl.metrics import combine, mini_batch_metrics
from rl.objective import CORRECTION_BOUNDS, PRESETS, Denominators, ObjectiveConfig
from tests.loss_fixture import denominators_of, flatten, k3, mini_batches, one, ppo_term, run, tensors

CORRECTIONS = ["tis_token", "tis_sequence", "mis_token", "mis_sequence"]


def unbounded(correction, **fields):
    return replace(PRESETS["r1"], correction=correction, correction_floor=0.0, correction_cap=math.inf, **fields)


def bounded(correction, preset="r1"):
    return ObjectiveConfig(preset=preset, correction=correction).resolve()


def weights(group, objective):
    flat, _, owner = tensors(group)
    return correction_weights(flat["old"], flat["sampling"], owner, len(group), objective)[0].tolist()


# --- the reference: plain floats -------------------------------------------------------------------------------------


def reference_ratios(group, correction):
    """Mismatch ratios, one per token of each sequence or one per sequence."""
    ratios = [[math.exp(old - s) for old, s in zip(o["old"], o["sampling"], strict=True)] for o in group]
    return [[math.prod(row)] for row in ratios] if correction.endswith("sequence") else ratios


def reference_weight(ratio, correction, floor, cap):
    if correction.startswith("tis"):
        return min(ratio, cap)
    return ratio if floor <= ratio <= cap else 0.0


def reference_r1(group, correction, floor, cap):
    """R1's loss with the policy terms weighted, and its gradient by the policy logprobs."""
    loss, gradient = 0.0, []
    for o, ratios in zip(group, reference_ratios(group, correction), strict=True):
        length, rows = len(o["policy"]), []
        for t, (p, old, ref) in enumerate(zip(o["policy"], o["old"], o["ref"], strict=True)):
            c = reference_weight(ratios[t % len(ratios)], correction, floor, cap)
            term, d_term = ppo_term(p - old, o["advantage"], 10, 10)
            kl, d_kl = k3(p, ref)
            loss += (-c * term + 0.001 * kl) / length / len(group)
            rows.append((-c * d_term + 0.001 * d_kl) / length / len(group))
        gradient += rows
    return loss, gradient


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("bounds", ["default", "none"])
@settings(max_examples=60)
@given(group=mini_batches())
def test_loss_and_gradient_equal_the_formula_and_without_bounds_plain_importance_sampling(correction, bounds, group):
    floor, cap = CORRECTION_BOUNDS[correction] if bounds == "default" else (0.0, math.inf)
    objective = bounded(correction) if bounds == "default" else unbounded(correction)
    loss, gradient, _ = run(group, objective)
    expected_loss, expected_gradient = reference_r1(group, correction, floor, cap)
    assert loss == pytest.approx(expected_loss, rel=1e-10, abs=1e-10)
    assert gradient == pytest.approx(expected_gradient, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(
    "correction, expected",
    [
        ("tis_token", [0.4, 2.0, 1.5, 2.0]),
        ("mis_token", [0.0, 3.0, 1.5, 0.0]),
        ("tis_sequence", [1.2, 1.2, 2.0, 2.0]),
        ("mis_sequence", [1.2, 1.2, 0.0, 0.0]),
    ],
)
def test_weights_of_two_completions(correction, expected):
    """Mismatch ratios 0.4 and 3, product 1.2; 1.5 and 6, product 9."""
    ratios = ([0.4, 3.0], [1.5, 6.0])
    group = [one([-1.0] * 2, [-1.0] * 2, 1.0, sampling=[-1.0 - math.log(r) for r in row]) for row in ratios]
    assert weights(group, bounded(correction)) == pytest.approx(expected)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("correction", CORRECTIONS)
@settings(max_examples=15)
@given(group=mini_batches())
def test_equal_logprobs_change_nothing_exactly(correction, preset, group):
    """Even with bounds of 1, which keep a ratio of 1."""
    group = [{**o, "sampling": o["old"]} for o in group]
    tightest = {"correction_cap": 1.0, "correction_floor": float(correction.startswith("mis"))}
    corrected = replace(PRESETS[preset], correction=correction, **tightest)
    assert set(weights(group, corrected)) == {1.0}
    assert run(group, corrected)[:2] == run(group, PRESETS[preset])[:2]


@pytest.mark.parametrize("preset", ["r1", "v3_2", "dapo"])
@pytest.mark.parametrize("correction", CORRECTIONS)
@settings(max_examples=20)
@given(group=mini_batches(), data=st.data())
def test_micro_batch_losses_and_metrics_make_the_mini_batch(correction, preset, group, data):
    objective = bounded(correction, preset)
    home = data.draw(st.lists(st.integers(0, 2), min_size=len(group), max_size=len(group)))
    whole, _, sums = run(group, objective)
    members = [[o for o, micro in zip(group, home, strict=True) if micro == m] for m in range(3)]
    parts = [run(some, objective, denominators_of(group)) for some in members]
    assert sum(loss for loss, _, _ in parts) == pytest.approx(whole, rel=1e-10, abs=1e-10)
    split = mini_batch_metrics(combine(part for _, _, part in parts))
    assert split == pytest.approx(mini_batch_metrics(combine([sums])), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_float32_is_close_to_float64_over_a_long_completion(correction):
    rng = np.random.default_rng(0)
    sampling = -rng.exponential(0.5, 8000)
    old = sampling + rng.normal(5e-5, 5e-3, 8000)
    objective, owner = unbounded(correction), torch.zeros(8000, dtype=torch.int64)
    exact, single = (
        correction_weights(torch.tensor(old, dtype=d), torch.tensor(sampling, dtype=d), owner, 1, objective)[0]
        for d in (torch.float64, torch.float32)
    )
    assert torch.allclose(exact, single.double(), rtol=1e-4)


# --- what a weight must not do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_no_gradient_flows_through_the_weight(correction):
    group = [one([-1.0, -2.0], [-1.1, -1.9], 1.0, sampling=[-1.3, -2.0]), one([-1.0], [-1.2], -1.0, sampling=[-1.0])]
    flat, advantages, owner = tensors(group)
    old, sampling = flat["old"].requires_grad_(), flat["sampling"].requires_grad_()
    objective = unbounded(correction, kl_coef=0.0)
    weight_T, sums = correction_weights(old, sampling, owner, 2, objective)
    assert not weight_T.requires_grad and not any(value.requires_grad for value in sums.values())
    policy_loss(flat["policy"], old, None, sampling, advantages, owner, objective, denominators_of(group))[0].backward()
    assert old.grad is None and sampling.grad is None
    _, plain, _ = run(group, replace(PRESETS["r1"], kl_coef=0.0))
    assert flat["policy"].grad is not None
    assert flat["policy"].grad.tolist() == pytest.approx([w * g for w, g in zip(weight_T.tolist(), plain, strict=True)])


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", ["policy", "old", "sampling"])
def test_a_nan_is_not_hidden(correction, name):
    group = [one([-1.0, -2.0], [-1.0, -2.0], 1.0), one([-1.0], [-1.0], -1.0)]
    group[0][name] = [math.nan, *group[0][name][1:]]
    loss, _, sums = run(group, bounded(correction))
    assert math.isnan(loss)
    assert combine([sums])["nonfinite_tokens"] == 1


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_token_the_generator_held_impossible_is_counted(correction):
    """sampling = -inf: an infinite ratio, which a bound turns into a finite weight."""
    group = [one([-1.0, -2.0], [-1.0, -2.0], 1.0, sampling=[-math.inf, -2.0])]
    loss, _, sums = run(group, bounded(correction))
    assert math.isfinite(loss)
    assert combine([sums])["nonfinite_tokens"] == 1


# --- expectations, enumerated ----------------------------------------------------------------------------------------


def log_softmax(rng, *shape):
    return torch.log_softmax(torch.tensor(rng.normal(0, 0.7, shape)), -1)


def gradient_of(value, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_gradient_of_one_token_is_unbiased_under_the_generators_distribution(correction, seed):
    """The mean over tokens drawn from `sampling` is the policy gradient, though the policy has left `old`."""
    rng = np.random.default_rng(seed)
    logits, advantages = torch.tensor(rng.normal(0, 0.7, 5)).requires_grad_(), torch.tensor(rng.normal(0, 1, 5))
    old, sampling = log_softmax(rng, 5), log_softmax(rng, 5)
    true = torch.autograd.grad((torch.softmax(logits, 0) * advantages).sum(), logits)[0]
    for objective, equal in ((unbounded(correction, kl_coef=0.0), True), (replace(PRESETS["r1"], kl_coef=0.0), False)):
        mean = torch.zeros(5, dtype=torch.float64)
        for v in range(5):
            only, first = slice(v, v + 1), torch.zeros(1, dtype=torch.int64)
            policy = torch.log_softmax(logits, 0)[only]
            one_token = Denominators(sequences=1, tokens=1, max_length=1)
            loss, _ = policy_loss(
                policy, old[only], None, sampling[only], advantages[only], first, objective, one_token
            )
            mean -= sampling[v].exp() * torch.autograd.grad(loss, logits)[0]
        assert torch.allclose(mean, true, atol=1e-12) == equal


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_gradient_of_completions_is_unbiased_at_the_sequence_level_only(correction, seed):
    """Two tokens of three, the second given the first: all nine completions, drawn by the generator. Policy = old."""
    rng = np.random.default_rng(seed)
    first, second = torch.tensor(rng.normal(0, 0.7, 3)), torch.tensor(rng.normal(0, 0.7, (3, 3)))
    parameters = (first.requires_grad_(), second.requires_grad_())
    sampling_first, sampling_second = log_softmax(rng, 3), log_softmax(rng, 3, 3)
    advantages, owner = torch.tensor(rng.normal(0, 1, (3, 3))), torch.zeros(2, dtype=torch.int64)
    objective = unbounded(correction, kl_coef=0.0, aggregation="sequence_sum")
    true, mean = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        policy = torch.stack([torch.log_softmax(first, 0)[a], torch.log_softmax(second[a], 0)[b]])
        sampling = torch.stack([sampling_first[a], sampling_second[a, b]])
        one_completion = Denominators(sequences=1, tokens=2, max_length=1)
        loss, _ = policy_loss(
            policy, policy, None, sampling, advantages[a, b].reshape(1), owner, objective, one_completion
        )
        mean -= sampling.sum().exp() * gradient_of(loss, parameters)
        true += gradient_of(policy.sum().exp() * advantages[a, b], parameters)
    assert torch.allclose(mean, true, atol=1e-12) == correction.endswith("sequence")


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", CORRECTIONS)
@settings(max_examples=30)
@given(group=mini_batches())
def test_metrics_equal_loops(correction, group):
    metrics = mini_batch_metrics(combine([run(group, bounded(correction))[2]]))
    floor, cap = CORRECTION_BOUNDS[correction]
    ratios = flatten(reference_ratios(group, correction))
    applied = [reference_weight(r, correction, floor, cap) for r in ratios]
    squares = sum(w * w for w in applied)
    changed = sum(w != r for w, r in zip(applied, ratios, strict=True)) / len(ratios)
    expected = {
        "correction/weight_mean": sum(applied) / len(applied),
        "correction/weight_max": max(applied),
        "correction/ess": sum(applied) ** 2 / len(applied) / squares if squares else 0.0,
        "correction/capped" if correction.startswith("tis") else "correction/masked": changed,
    }
    assert {k: v for k, v in metrics.items() if k.startswith("correction/")} == pytest.approx(expected)
    assert 0 <= metrics["correction/ess"] <= 1 + 1e-12


def test_without_a_correction_there_are_no_metrics_of_it():
    metrics = mini_batch_metrics(combine([run([one([-1.0], [-1.0], 1.0)], PRESETS["v3_2"])[2]]))
    assert not [name for name in metrics if name.startswith("correction/")]


def test_when_all_is_dropped_only_the_kl_term_is_left():
    group = [one([-1.0, -2.0], [-1.0, -2.0], 1.0, ref=[-1.5, -2.5], sampling=[-9.0, -9.0])]
    loss, gradient, sums = run(group, bounded("mis_token"))
    assert (loss, gradient) == run([{**group[0], "advantage": 0.0}], PRESETS["r1"])[:2]
    assert all(g != 0 for g in gradient)
    metrics = mini_batch_metrics(combine([sums]))
    assert (metrics["correction/masked"], metrics["correction/ess"], metrics["correction/weight_max"]) == (1, 0, 0)


# --- sequence mask ---------------------------------------------------------------------------------------------------


def test_sequence_mask_drops_the_policy_term_of_drifted_bad_completions_only():
    """Same drift, four cases: only (A < 0, drift above delta) is masked, and the KL term stays in all."""
    objective = replace(PRESETS["v3_2"], kl_coef=0.1)
    drifted = {"ref": [-1.5, -2.5], "sampling": [-0.4, -1.4]}  # mean drift 0.6 > 0.5
    near = {"ref": [-1.5, -2.5], "sampling": [-0.6, -1.6]}  # mean drift 0.4
    group = [one([-1.0, -2.0], [-1.0, -2.0], a, **case) for case in (drifted, near) for a in (-1.0, 1.0)]
    _, masked, sums = run(group, objective)
    _, unmasked, _ = run(group, replace(objective, sequence_mask_delta=None))
    _, kl_only, _ = run([{**o, "advantage": 0.0} for o in group], objective)
    assert masked[:2] == pytest.approx(kl_only[:2])
    assert all(g != 0 for g in masked[:2])
    assert masked[2:] == unmasked[2:]
    assert masked[:2] != pytest.approx(unmasked[:2])
    assert mini_batch_metrics(combine([sums]))["loss/masked_sequences"] == 1 / 4


def test_sequence_mask_compares_with_the_generator_not_the_trainers_old_logprobs():
    group = [one([-1.0], [-9.0], -1.0, sampling=[-1.0]), one([-1.0], [-1.0], -1.0, sampling=[-0.1])]
    _, gradient, _ = run(group, replace(PRESETS["v3_2"], kl_coef=0.0))
    assert gradient[0] != 0
    assert gradient[1] == 0


# --- configuration, bad input ----------------------------------------------------------------------------------------


def test_a_recipe_names_a_correction_and_may_move_its_bounds():
    assert all(objective.correction == "none" and not objective.correction_floor for objective in PRESETS.values())
    icepop = ObjectiveConfig(correction="mis_token").resolve()
    assert (icepop.correction_floor, icepop.correction_cap) == (0.5, 5.0)
    assert ObjectiveConfig(correction="tis_token").resolve().correction_cap == 2.0
    moved = ObjectiveConfig(preset="dapo", correction="mis_sequence", correction_cap="none", correction_floor=0)
    assert moved.resolve() == replace(PRESETS["dapo"], correction="mis_sequence")
    assert ObjectiveConfig(correction="none").resolve() == PRESETS["r1"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"correction": "tis_token", "correction_floor": 0.5}, "tis_token only caps weights, so correction_floor 0.5"),
        ({"correction": "tis_sequence", "correction_floor": 0.1}, "choose mis_token or mis_sequence"),
        ({"correction_cap": 3.0}, "correction is none; choose one or leave the bounds out"),
        ({"correction": "none", "correction_floor": 0.5}, "correction is none"),
        ({"correction": "mis_token", "correction_floor": 1.5}, "less than or equal to 1"),
        ({"correction": "mis_token", "correction_cap": 0.9}, "greater than or equal to 1"),
        ({"correction": "tis_token", "correction_cap": math.inf}, "finite number"),
        ({"correction": "tis"}, "tis_token"),
    ],
)
def test_contradictory_or_unknown_settings_are_refused_in_a_sentence(fields, message):
    with pytest.raises(ValidationError, match=message):
        ObjectiveConfig(**fields)


def test_sampling_logprobs_are_asked_for():
    flat, advantages, owner = tensors([one([-1.0], [-1.0], 1.0)])
    with pytest.raises(ValueError, match="need the generator's sampling logprobs; give sampling_T"):
        policy_loss(
            flat["policy"],
            flat["old"],
            flat["ref"],
            None,
            advantages,
            owner,
            bounded("tis_token"),
            Denominators.of([1], 4),
        )
