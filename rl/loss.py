"""The policy loss, as pure functions of per-token logprobs.

    rho_t  = exp(policy_t - old_t)             importance ratio (GSPO: its geometric mean over t)
    loss   = - sum_t w_t c_t M_i min(rho_t A_i, clip(rho_t, 1 - clip_low, 1 + clip_high) A_i)  +  kl_coef sum_t w_t KL_t
             - entropy_coef sum_t w_t H_t

for token t of sequence i. c_t is the correction and M_i the off-policy sequence mask (`rl.correction`), 1 when off. The
weight w_t carries the whole normalisation; its denominators belong to the *mini-batch*:

    sequence_mean   w_t = 1 / (sequences * |o_i|)        R1 (ours), DeepSeekMath, V3.2, GSPO
    token_mean      w_t = 1 / tokens                     DAPO
    sequence_sum    w_t = 1 / (sequences * max_length)   Dr. GRPO

where |o_i| is the completion's own token count. So the losses of the micro-batches of a mini-batch *sum* to the loss of
the mini-batch, however it was split. The one condition: a sequence lies in one micro-batch as a whole.

Axes: T completion tokens of the micro-batch (prompt tokens never get here), N its sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.correction import correction_weights, off_policy_kept
from rl.objective import Denominators, KLEstimator, Objective
from rl.sequences import sequence_lengths, sequence_mean


def policy_loss(
    policy_T: Tensor,
    old_T: Tensor,
    ref_T: Tensor | None,
    sampling_T: Tensor | None,
    advantages_N: Tensor,
    sequence_of_token_T: Tensor,
    objective: Objective,
    denominators: Denominators,
    entropy_T: Tensor | None = None,
    owed: "SequenceTerms | None" = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One micro-batch's share of the mini-batch loss, and sums for its metrics.

    Args:
        policy_T: logprobs under the current weights, with gradient, float32 or float64.
        old_T, ref_T, sampling_T: the other three logprobs, without gradient. `ref_T` is needed when kl_coef > 0,
            `sampling_T` for correction and mask, which compare with what the generator reported.
        sequence_of_token_T: int64 in [0, N): the sequence each token belongs to. Tokens may come in any order.
        denominators: `sequences`, `tokens` and `max_length` of the whole mini-batch, over all micro-batches and ranks.
            (Data-parallel wrappers that average gradients over ranks need the loss times the number of ranks.)
        entropy_T: nats, with gradient; needed when entropy_coef > 0.
        owed: where these tokens are not the whole of their sequences: what they owe to the whole, made before; only for
            objectives that sum over tokens.

    Returns:
        (loss, sums): a scalar, and detached scalars to be reduced by `rl.metrics.combine`.

    Nothing is repaired: NaN comes out as a NaN loss, and `nonfinite_tokens` counts tokens with an infinite or NaN
    logprob, which a clipped or masked term would hide. Check both before stepping the optimizer.
    An empty micro-batch (T = N = 0) has loss 0 with zero gradient.
    """
    _check_inputs(policy_T, old_T, ref_T, sampling_T, entropy_T, sequence_of_token_T, objective)
    old_T = old_T.detach().to(policy_T.dtype)
    ref_T = None if ref_T is None else ref_T.detach().to(policy_T.dtype)
    sampling_T = None if sampling_T is None else sampling_T.detach().to(policy_T.dtype)
    advantage_T = advantages_N.to(policy_T.dtype)[sequence_of_token_T]
    if owed is None:
        owed = sequence_terms(policy_T, old_T, sampling_T, advantages_N, sequence_of_token_T, objective, denominators)
    weight_T = owed.weight_T.to(policy_T.dtype)

    log_ratio_T = policy_T - old_T
    if objective.ratio_level == "sequence":
        log_ratio_T = sequence_mean(log_ratio_T, sequence_of_token_T, len(advantages_N))[sequence_of_token_T]
    ratio_T = torch.exp(log_ratio_T)
    clipped_T = ratio_T.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    surrogate_T = torch.minimum(ratio_T * advantage_T, clipped_T * advantage_T)

    if objective.sequence_mask_delta is not None:
        surrogate_T = surrogate_T * owed.kept_N[sequence_of_token_T]
    if owed.correction_T is not None:
        surrogate_T = surrogate_T * owed.correction_T
    loss = -(weight_T * surrogate_T).sum()

    if objective.needs_reference:
        assert ref_T is not None
        kl_T = kl_estimate(policy_T, ref_T, objective.kl_estimator)
        if objective.unbiased_kl:
            kl_T = torch.exp(policy_T - old_T) * kl_T  # the ratio keeps its gradient: that is what removes the bias
        loss = loss + objective.kl_coef * (weight_T * kl_T).sum()
    if objective.entropy_coef > 0:
        assert entropy_T is not None
        loss = loss - objective.entropy_coef * (weight_T * entropy_T).sum()

    with torch.no_grad():
        sums = _metric_sums(policy_T, old_T, ref_T, sampling_T, ratio_T, advantage_T, objective) | owed.sums
        sums["sequences"] = policy_T.new_tensor(len(advantages_N))
        sums["masked_sequences"] = (~owed.kept_N).sum()
    return loss, sums


@dataclass(frozen=True, slots=True)
class SequenceTerms:
    """What tokens owe to the whole of their sequences."""

    weight_T: Tensor  # float64: `token_weights`
    kept_N: Tensor  # bool: the off-policy sequence mask
    correction_T: Tensor | None  # None: 1
    sums: dict[str, Tensor]  # of mask and correction, for metrics

    def part(self, tokens: slice | Tensor) -> "SequenceTerms":
        """Of some tokens. The sums are not theirs, and are left out."""
        correction_T = None if self.correction_T is None else self.correction_T[tokens]
        return SequenceTerms(self.weight_T[tokens], self.kept_N, correction_T, {})


@torch.no_grad()
def sequence_terms(
    policy_T: Tensor,
    old_T: Tensor,
    sampling_T: Tensor | None,
    advantages_N: Tensor,
    sequence_of_token_T: Tensor,
    objective: Objective,
    denominators: Denominators,
) -> SequenceTerms:
    """Of whole sequences. Arguments are those of `policy_loss`; the mask alone looks at policy_T."""
    weight_T = token_weights(sequence_of_token_T, len(advantages_N), objective, denominators)
    kept_N, correction_T, sums = torch.ones_like(advantages_N, dtype=torch.bool), None, {}
    if objective.sequence_mask_delta is not None:
        assert sampling_T is not None
        kept_N, kept_by_old_N = (
            off_policy_kept(each_T, sampling_T, advantages_N, sequence_of_token_T, objective.sequence_mask_delta)
            for each_T in (policy_T, old_T)
        )
        sums["moved_masks"] = (kept_N != kept_by_old_N).sum()
    if objective.correction != "none":
        assert sampling_T is not None
        correction_T, found = correction_weights(old_T, sampling_T, sequence_of_token_T, len(advantages_N), objective)
        sums |= found
    return SequenceTerms(weight_T, kept_N, correction_T, sums)


def kl_estimate(policy_T: Tensor, ref_T: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || ref), nats, for tokens drawn from `policy` (Schulman 2020), [T].

    With log_r = ref - policy: k1 = -log_r (unbiased, either sign), k2 = log_r^2 / 2 (biased), and
    k3 = exp(log_r) - log_r - 1 (unbiased, never negative). Unbiased speaks of the value, not of its gradient.
    """
    log_ratio_T = ref_T - policy_T
    if estimator == "k1":
        return -log_ratio_T
    if estimator == "k2":
        return log_ratio_T.square() / 2
    return torch.expm1(log_ratio_T) - log_ratio_T


def token_weights(
    sequence_of_token_T: Tensor, sequences_here: int, objective: Objective, denominators: Denominators
) -> Tensor:
    """The weight w_t of each token, float64 [T]; the module docstring has the table."""
    if objective.aggregation == "sequence_mean":
        length_N = sequence_lengths(sequence_of_token_T, sequences_here)
        return 1.0 / (denominators.sequences * length_N[sequence_of_token_T].double())
    constant = denominators.tokens
    if objective.aggregation == "sequence_sum":
        constant = denominators.sequences * denominators.max_length
    return torch.full_like(sequence_of_token_T, 1.0 / constant, dtype=torch.float64)


def _metric_sums(
    policy_T: Tensor,
    old_T: Tensor,
    ref_T: Tensor | None,
    sampling_T: Tensor | None,
    ratio_T: Tensor,
    advantage_T: Tensor,
    objective: Objective,
) -> dict[str, Tensor]:
    finite_T = torch.isfinite(policy_T)
    for other_T in (old_T, ref_T, sampling_T):
        if other_T is not None:
            finite_T = finite_T & torch.isfinite(other_T)
    sums = {
        "tokens": policy_T.new_tensor(len(policy_T)),
        "nonfinite_tokens": (~finite_T).sum(),
        "importance_ratio": ratio_T.sum(),
        "importance_ratio_max": ratio_T.max() if len(ratio_T) else ratio_T.new_tensor(0.0),
        # Clipping cuts the gradient only on the side the advantage pushes to.
        "clipped_low": ((advantage_T < 0) & (ratio_T < 1 - objective.clip_low)).sum(),
        "clipped_high": ((advantage_T > 0) & (ratio_T > 1 + objective.clip_high)).sum(),
        "kl_old_k3": kl_estimate(old_T, policy_T, "k3").sum(),
    }
    if ref_T is not None:
        sums["kl_reference_k3"] = kl_estimate(policy_T, ref_T, "k3").sum()
    return sums


def _check_inputs(
    policy_T: Tensor,
    old_T: Tensor,
    ref_T: Tensor | None,
    sampling_T: Tensor | None,
    entropy_T: Tensor | None,
    sequence_of_token_T: Tensor,
    objective: Objective,
) -> None:
    if policy_T.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"policy logprobs must be float32 or float64 (ratios need the digits), got {policy_T.dtype}")
    if objective.needs_reference and ref_T is None:
        raise ValueError(f"kl_coef {objective.kl_coef} needs reference logprobs: give ref_T or set kl_coef to 0")
    if objective.needs_sampling and sampling_T is None:
        raise ValueError("correction and sequence_mask_delta need the generator's sampling logprobs; give sampling_T")
    if objective.entropy_coef > 0 and entropy_T is None:
        raise ValueError(f"entropy_coef {objective.entropy_coef} needs the entropy of each token: give entropy_T")
    named = {"old_T": old_T, "ref_T": ref_T, "sampling_T": sampling_T, "entropy_T": entropy_T}
    named["sequence_of_token_T"] = sequence_of_token_T
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != policy_T.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but policy_T has {tuple(policy_T.shape)}")
