"""The policy loss against loops over tokens written from the papers' formulas, with gradients derived by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rl.loss import kl_estimate, policy_loss
from rl.metrics import combine, mini_batch_metrics
from rl.mismatch import mismatch_sums
from rl.objective import PRESETS, Denominators, ObjectiveConfig
from tests.loss_fixture import MAX_LENGTH, denominators_of, flatten, k3, mini_batches, one, ppo_term, run, tensors

# --- the reference: one function per paper, plain floats -------------------------------------------------------------


def reference_r1(group):
    loss, gradient = 0.0, []
    for o in group:
        rows = []
        for p, old, ref in zip(o["policy"], o["old"], o["ref"], strict=True):
            term, d_term = ppo_term(p - old, o["advantage"], 10, 10)
            kl, d_kl = k3(p, ref)
            weight = 1 / len(group) / len(o["policy"])
            loss += weight * (-term + 0.001 * kl)
            rows.append(weight * (-d_term + 0.001 * d_kl))
        gradient.append(rows)
    return loss, gradient


def reference_v3_2(group):
    loss, gradient = 0.0, []
    for o in group:
        rows = []
        length = len(o["policy"])
        drift = sum(s - p for s, p in zip(o["sampling"], o["policy"], strict=True)) / length
        m = 0.0 if o["advantage"] < 0 and drift > 0.5 else 1.0
        for p, old, ref in zip(o["policy"], o["old"], o["ref"], strict=True):
            term, d_term = ppo_term(p - old, o["advantage"], 10, 10)
            kl, d_kl = k3(p, ref)
            rho = math.exp(p - old)
            weight = 1 / len(group) / length
            loss += weight * (-m * term + 0.001 * rho * kl)
            rows.append(weight * (-m * d_term + 0.001 * (rho * kl + rho * d_kl)))
        gradient.append(rows)
    return loss, gradient


def reference_dapo(group):
    total = sum(len(o["policy"]) for o in group)
    loss, gradient = 0.0, []
    for o in group:
        terms = [ppo_term(p - old, o["advantage"], 0.2, 0.28) for p, old in zip(o["policy"], o["old"], strict=True)]
        loss -= sum(term for term, _ in terms) / total
        gradient.append([-d / total for _, d in terms])
    return loss, gradient


def reference_dr_grpo(group):
    loss, gradient = 0.0, []
    for o in group:
        terms = [ppo_term(p - old, o["advantage"], 0.2, 0.2) for p, old in zip(o["policy"], o["old"], strict=True)]
        loss -= sum(term for term, _ in terms) / MAX_LENGTH / len(group)
        gradient.append([-d / MAX_LENGTH / len(group) for _, d in terms])
    return loss, gradient


def reference_gspo(group):
    loss, gradient = 0.0, []
    for o in group:
        length = len(o["policy"])
        log_s = sum(p - old for p, old in zip(o["policy"], o["old"], strict=True)) / length
        term, d_term = ppo_term(log_s, o["advantage"], 3e-4, 4e-4)
        loss -= term / len(group)
        gradient.append([-d_term / length / len(group)] * length)
    return loss, gradient


REFERENCES = {
    "r1": reference_r1,
    "v3_2": reference_v3_2,
    "dapo": reference_dapo,
    "dr_grpo": reference_dr_grpo,
    "gspo": reference_gspo,
}


def test_every_preset_has_a_reference():
    assert set(REFERENCES) == set(PRESETS)


@pytest.mark.parametrize("preset", REFERENCES)
@settings(max_examples=60)
@given(group=mini_batches())
def test_loss_and_gradient_equal_the_papers_formula(preset, group):
    loss, gradient, _ = run(group, ObjectiveConfig(preset=preset).resolve())
    expected_loss, expected_gradient = REFERENCES[preset](group)
    assert loss == pytest.approx(expected_loss, rel=1e-10, abs=1e-10)
    assert gradient == pytest.approx(flatten(expected_gradient), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("preset", REFERENCES)
@settings(max_examples=40)
@given(group=mini_batches(), data=st.data())
def test_micro_batch_losses_and_gradients_sum_to_the_mini_batch(preset, group, data):
    """Any assignment of sequences to micro-batches, in any order, with tokens of a micro-batch shuffled."""
    objective = PRESETS[preset]
    home = data.draw(st.lists(st.integers(0, 2), min_size=len(group), max_size=len(group)))
    order = data.draw(st.permutations(range(len(group))))
    expected_loss, expected_gradient = REFERENCES[preset](group)
    total, parts = 0.0, []
    for micro in range(3):
        members = [i for i in order if home[i] == micro]
        flat, advantages, owner = tensors([group[i] for i in members])
        shuffle = torch.randperm(len(owner), generator=torch.Generator().manual_seed(micro))
        loss, sums = policy_loss(
            flat["policy"][shuffle],
            flat["old"][shuffle],
            flat["ref"][shuffle],
            flat["sampling"][shuffle],
            advantages,
            owner[shuffle],
            objective,
            denominators_of(group),
        )
        loss.backward()  # also for an empty micro-batch
        total += loss.item()
        parts.append(sums)
        assert flat["policy"].grad is not None
        expected = flatten([expected_gradient[i] for i in members])
        assert flat["policy"].grad.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert total == pytest.approx(expected_loss, rel=1e-10, abs=1e-10)

    whole = mini_batch_metrics(combine([run(group, objective)[2]]))
    split = mini_batch_metrics(combine(parts))
    assert split == pytest.approx(whole, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("preset", REFERENCES)
def test_on_policy_the_gradient_is_plain_policy_gradient(preset):
    """policy == old == ref == sampling: every ratio is 1, nothing is clipped, the KL has no value and no gradient."""
    group = [one([-1.0, -2.0], [-1.0, -2.0], 1.5), one([-0.5] * 3, [-0.5] * 3, -0.7)]
    loss, gradient, sums = run(group, PRESETS[preset])
    weights = {"dapo": [1 / 5] * 5, "dr_grpo": [1 / 2 / MAX_LENGTH] * 5}.get(preset, [1 / 4] * 2 + [1 / 6] * 3)
    advantage_of_token = [1.5] * 2 + [-0.7] * 3
    expected = [-w * a for w, a in zip(weights, advantage_of_token, strict=True)]
    assert gradient == pytest.approx(expected, abs=1e-15)
    assert loss == pytest.approx(sum(expected), abs=1e-15)
    metrics = mini_batch_metrics(combine([sums]))
    assert metrics["loss/importance_ratio_mean"] == metrics["loss/importance_ratio_max"] == 1.0
    assert metrics["kl/reference_k3"] == metrics["kl/old_k3"] == 0.0
    assert metrics["loss/clip_fraction_low"] == metrics["loss/clip_fraction_high"] == 0.0


# --- KL --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=30))
def test_k3_and_k2_are_never_negative_and_vanish_only_at_equality(pairs):
    policy = torch.tensor([p for p, _ in pairs], dtype=torch.float64)
    ref = torch.tensor([r for _, r in pairs], dtype=torch.float64)
    for estimator in ("k2", "k3"):
        value = kl_estimate(policy, ref, estimator)
        assert (value >= 0).all()
        assert (value[(policy - ref).abs() > 1e-6] > 0).all()
    assert torch.equal(kl_estimate(policy, ref, "k1"), policy - ref)


def categorical(seed):
    rng = np.random.default_rng(seed)
    draw = lambda: torch.tensor(rng.normal(0, 0.7, 5))  # noqa: E731
    return draw().requires_grad_(), torch.log_softmax(draw(), 0), torch.log_softmax(draw(), 0)


def test_k1_and_k3_have_the_kl_as_their_mean():
    logits, ref, _ = categorical(0)
    policy = torch.log_softmax(logits, 0).detach()
    exact = (policy.exp() * (policy - ref)).sum()
    for estimator in ("k1", "k3"):
        assert (policy.exp() * kl_estimate(policy, ref, estimator)).sum().item() == pytest.approx(exact.item())


def expected_kl_gradient(logits, ref, old, unbiased):
    """Exact expectation, over tokens drawn from `old`, of the gradient of the KL term of the loss."""
    objective = replace(PRESETS["r1"], kl_coef=1.0, unbiased_kl=unbiased)
    gradient = torch.zeros_like(logits)
    for token in range(len(logits)):
        policy = torch.log_softmax(logits, 0)[token : token + 1]
        loss, _ = policy_loss(
            policy,
            old[token : token + 1],
            ref[token : token + 1],
            None,
            torch.zeros(1, dtype=torch.float64),
            torch.zeros(1, dtype=torch.int64),
            objective,
            Denominators(sequences=1, tokens=1, max_length=1),
        )
        gradient += old[token].exp() * torch.autograd.grad(loss, logits)[0]
    return gradient


@pytest.mark.parametrize("seed", range(3))
def test_unbiased_kl_has_the_true_kl_gradient_off_policy_and_plain_k3_has_not(seed):
    logits, ref, old = categorical(seed)
    policy = torch.log_softmax(logits, 0)
    true = torch.autograd.grad((policy.exp() * (policy - ref)).sum(), logits)[0]
    assert torch.allclose(expected_kl_gradient(logits, ref, old, unbiased=True), true, atol=1e-12)
    assert not torch.allclose(expected_kl_gradient(logits, ref, old, unbiased=False), true, atol=1e-2)


# --- clipping --------------------------------------------------------------------------------------------------------


def term_at(ratio, advantage, objective):
    """Policy term and its gradient by the logprob, for a completion of one token."""
    group = [one([math.log(ratio) - 9.0], [-9.0], advantage)]
    loss, gradient, sums = run(group, replace(objective, kl_coef=0.0, sequence_mask_delta=None))
    return -loss, -gradient[0], combine([sums])


def test_r1_cuts_the_gradient_of_good_tokens_above_eleven():
    assert term_at(10.9, 1.0, PRESETS["r1"])[:2] == pytest.approx((10.9, 10.9))
    value, gradient, sums = term_at(11.1, 1.0, PRESETS["r1"])
    assert (value, gradient) == pytest.approx((11.0, 0.0))
    assert sums["clipped_high"] == 1


@pytest.mark.parametrize("ratio", [1e-4, 0.5, 11.1, 500.0])
def test_r1_never_clips_bad_tokens(ratio):
    """[1 - 10, 1 + 10] has no lower side for a positive ratio, and PPO's min does not bound it above when A < 0."""
    value, gradient, sums = term_at(ratio, -1.0, PRESETS["r1"])
    assert (value, gradient) == pytest.approx((-ratio, -ratio))
    assert sums["clipped_low"] == sums["clipped_high"] == 0


@pytest.mark.parametrize(
    "ratio, advantage, value, has_gradient",
    [
        (1.27, 2.0, 2.54, True),
        (1.29, 2.0, 2.56, False),  # clip-higher: 1.28
        (0.5, 2.0, 1.0, True),  # too unlikely now and good: free to come back
        (0.81, -2.0, -1.62, True),
        (0.79, -2.0, -1.6, False),  # 0.8
        (1.5, -2.0, -3.0, True),
    ],
)
def test_dapo_clips_on_the_side_the_advantage_pushes_to(ratio, advantage, value, has_gradient):
    got, gradient, sums = term_at(ratio, advantage, PRESETS["dapo"])
    assert got == pytest.approx(value)
    assert (gradient != 0) == has_gradient
    assert sums["clipped_low"] + sums["clipped_high"] == (0 if has_gradient else 1)


def test_gspo_shares_one_ratio_per_sequence_the_geometric_mean():
    objective = replace(PRESETS["gspo"], clip_low=5.0, clip_high=5.0)
    group = [one([-1.0, -3.0], [-1.4, -2.0], 2.0), one([-1.0], [-0.9], -1.0)]
    loss, gradient, sums = run(group, objective)
    s = math.exp((0.4 - 1.0) / 2)
    assert loss == pytest.approx(-(2 * s - math.exp(-0.1)) / 2)
    assert gradient[0] == gradient[1] == pytest.approx(-2 * s / 2 / 2)
    assert combine([sums])["importance_ratio"] == pytest.approx(2 * s + math.exp(-0.1))


# --- metrics, bad input ----------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(group=mini_batches())
def test_metrics_equal_loops(group):
    _, _, sums = run(group, PRESETS["dapo"])
    metrics = mini_batch_metrics(combine([sums]))
    tokens = [(p, o, r, s["advantage"]) for s in group for p, o, r in zip(s["policy"], s["old"], s["ref"], strict=True)]
    ratios = [math.exp(p - o) for p, o, _, _ in tokens]
    n = len(tokens)
    assert metrics["loss/importance_ratio_mean"] == pytest.approx(sum(ratios) / n)
    assert metrics["loss/importance_ratio_max"] == pytest.approx(max(ratios))
    low = sum(a < 0 and x < 0.8 for x, (_, _, _, a) in zip(ratios, tokens, strict=True))
    high = sum(a > 0 and x > 1.28 for x, (_, _, _, a) in zip(ratios, tokens, strict=True))
    assert metrics["loss/clip_fraction_low"] == pytest.approx(low / n)
    assert metrics["loss/clip_fraction_high"] == pytest.approx(high / n)
    assert metrics["kl/reference_k3"] == pytest.approx(
        sum(k3(p, r)[0] for p, _, r, _ in tokens) / n, rel=1e-10, abs=1e-12
    )
    assert metrics["kl/old_k3"] == pytest.approx(sum(k3(o, p)[0] for p, o, _, _ in tokens) / n, rel=1e-10, abs=1e-12)


def test_mismatch_metrics_equal_loops_and_reduce_over_micro_batches():
    old, sampling = [-1.0, -2.0, -0.5], [-1.1, -1.7, -0.5]
    parts = [mismatch_sums(torch.tensor(old[a:b]), torch.tensor(sampling[a:b])) for a, b in ((0, 1), (1, 1), (1, 3))]
    metrics = mini_batch_metrics(combine(parts))
    assert metrics["mismatch/abs_mean"] == pytest.approx(0.4 / 3, rel=1e-5)
    assert metrics["mismatch/abs_max"] == pytest.approx(0.3, rel=1e-5)
    expected = sum(math.exp(o - s) - (o - s) - 1 for o, s in zip(old, sampling, strict=True)) / 3
    assert metrics["mismatch/kl"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["policy", "old", "ref", "sampling"])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_non_finite_logprobs_are_counted_and_nan_reaches_the_loss(name, bad):
    group = [one([-1.0, -2.0], [-1.0, -2.0], 1.0), one([-1.0], [-1.0], -1.0)]
    group[0][name] = [bad, *group[0][name][1:]]
    loss, _, sums = run(group, PRESETS["r1"])
    assert combine([sums])["nonfinite_tokens"] == 1
    if name != "sampling" and math.isnan(bad):
        assert math.isnan(loss)


def test_combine_keeps_a_nan_maximum_in_either_order():
    for parts in ([{"x_max": math.nan}, {"x_max": 1.0}], [{"x_max": 1.0}, {"x_max": math.nan}]):
        assert math.isnan(combine(parts)["x_max"])


@given(mini_batches(), st.sampled_from(["r1", "dapo", "dr_grpo", "gspo", "v3_2"]))
def test_an_entropy_bonus_adds_the_mean_entropy_as_the_tokens_are_weighed(group, preset):
    plain, bonus = PRESETS[preset], replace(PRESETS[preset], entropy_coef=0.3)
    flat, advantages, owner = tensors(group)
    entropy = torch.rand(len(owner), dtype=torch.float64, requires_grad=True)
    parts = (flat["policy"], flat["old"], flat["ref"], flat["sampling"], advantages, owner)
    without, _ = policy_loss(*parts, plain, denominators_of(group))
    loss, _ = policy_loss(*parts, bonus, denominators_of(group), entropy)
    tokens, sequences = len(owner), len(group)
    per_sequence = {"dapo": 1 / tokens, "dr_grpo": 1 / sequences / MAX_LENGTH}
    weights = [per_sequence.get(preset, 1 / sequences / len(o["policy"])) for o in group for _ in o["policy"]]
    gained = sum(w * h for w, h in zip(weights, entropy.tolist(), strict=True))
    assert (without - loss).item() == pytest.approx(0.3 * gained, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, entropy)
    assert gradient.tolist() == pytest.approx([-0.3 * w for w in weights])


def test_missing_inputs_and_half_precision_are_refused():
    flat, advantages, owner = tensors([one([-1.0], [-1.0], 1.0)])
    policy, old, denominators = flat["policy"], flat["old"], Denominators.of([1], 4)
    with pytest.raises(ValueError, match="reference logprobs"):
        policy_loss(policy, old, None, None, advantages, owner, PRESETS["r1"], denominators)
    with pytest.raises(ValueError, match="sampling logprobs"):
        policy_loss(policy, old, old, None, advantages, owner, PRESETS["v3_2"], denominators)
    with pytest.raises(ValueError, match="float32"):
        policy_loss(policy.bfloat16(), old, old, None, advantages, owner, PRESETS["r1"], denominators)
    with pytest.raises(ValueError, match="old_T has shape"):
        policy_loss(policy, old[:0], old, None, advantages, owner, PRESETS["r1"], denominators)
    with pytest.raises(ValueError, match=r"entropy_coef 0\.1 needs the entropy of each token"):
        policy_loss(policy, old, old, None, advantages, owner, replace(PRESETS["r1"], entropy_coef=0.1), denominators)
    loss, sums = policy_loss(policy, old, None, None, advantages, owner, PRESETS["dapo"], denominators)
    assert math.isfinite(loss.item())
    assert "kl/reference_k3" not in mini_batch_metrics(combine([sums]))


# --- configuration ---------------------------------------------------------------------------------------------------


def test_recipe_overrides_one_field_of_a_preset():
    objective = ObjectiveConfig(preset="dapo", clip_high=0.4).resolve()
    assert objective == replace(PRESETS["dapo"], clip_high=0.4)
    assert ObjectiveConfig(preset="v3_2", sequence_mask_delta="none").resolve().sequence_mask_delta is None
    assert ObjectiveConfig(preset="dapo", dynamic_sampling=False, kl_coef=0.0).resolve().dynamic_sampling is False
    assert ObjectiveConfig().resolve() == PRESETS["r1"]


@pytest.mark.parametrize(
    "fields",
    [{"preset": "v3_2", "kl_estimator": "k1"}, {"clip_low": -1.0}, {"beta": 0.1}, {"sequence_mask_delta": "x"}],
)
def test_contradictory_or_unknown_settings_are_refused(fields):
    with pytest.raises(ValidationError):
        ObjectiveConfig(**fields)


def test_every_field_says_what_it_means_and_why():
    for name, field in ObjectiveConfig.model_fields.items():
        assert field.description and len(field.description) > 40, name
