"""Corrections for completions that the policy in training did not sample: generator/trainer mismatch and staleness.

The generator drew the tokens with the probabilities it reported (`sampling`), while the loss takes them as drawn from
`old`, the trainer's own before the step. Importance sampling makes up for it: each policy term is multiplied by a
weight, made of the mismatch ratio

    token       r_t = exp(old_t - sampling_t)
    sequence    r_i = prod_t r_t, shared by the tokens of completion i

    tis         weight = min(r, cap)                           truncated importance sampling (Yao et al. 2025)
    mis         weight = r where floor <= r <= cap, else 0     masked importance sampling (IcePop, arXiv:2510.18855;
                                                               of sequences, Liu et al. 2025)

The sequence ratio is the *product*, how much likelier the completion is under `old`: with it, and without bounds, the
gradient is on average that of completions drawn from `old`. Its logarithm is a sum over tokens, so long completions
leave the bounds first. Token ratios spread far less, but ignore that the generator drew the other tokens too: a bias.

A dropped token or sequence stays in the denominators, as in IcePop: its policy term is 0, the others weigh what they
did. The KL term is left alone; `unbiased_kl` is a correction of its own.

Yao et al.: "Your efficient RL framework secretly brings you off-policy RL training". Liu et al.: "When speed kills
stability: demystifying RL collapse from the training-inference mismatch".

DeepSeek-V3.2's off-policy sequence mask is here too. Axes: T completion tokens of a micro-batch, N its sequences.
"""

import torch
from torch import Tensor

from rl.objective import Objective
from rl.sequences import sequence_mean, sequence_total


@torch.no_grad()
def correction_weights(
    old_T: Tensor, sampling_T: Tensor, sequence_of_token_T: Tensor, sequences: int, objective: Objective
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weight of each token's policy term, [T], and sums for `rl.metrics.combine`.

    Weights lie in [0, correction_cap] and have no gradient: they change what is averaged over, not what is maximised.
    Equal logprobs give exactly 1. A NaN stays a NaN. The sums count tokens, or sequences at the sequence level, where
    every sequence must be here as a whole. Not defined for `correction: none`.
    """
    method, level = objective.correction.split("_")
    log_ratio = old_T - sampling_T
    if level == "sequence":
        log_ratio = sequence_total(log_ratio, sequence_of_token_T, sequences)
    ratio = torch.exp(log_ratio)
    outside = (ratio < objective.correction_floor) | (ratio > objective.correction_cap)  # false for NaN
    weight = ratio.masked_fill(outside, 0.0) if method == "mis" else ratio.clamp(max=objective.correction_cap)
    sums = {
        "correction_units": ratio.new_tensor(len(ratio)),
        "correction_weight": weight.sum(),
        "correction_weight_square": weight.square().sum(),
        "correction_weight_max": weight.max() if len(weight) else weight.new_tensor(0.0),
        "correction_masked" if method == "mis" else "correction_capped": outside.sum(),
    }
    return weight[sequence_of_token_T] if level == "sequence" else weight, sums


def off_policy_kept(
    policy_T: Tensor, sampling_T: Tensor, advantages_N: Tensor, sequence_of_token_T: Tensor, delta: float
) -> Tensor:
    """DeepSeek-V3.2's off-policy sequence mask (eq. 9), bool [N]: False for sequences whose policy term is dropped.

    Dropped are those with negative advantage and mean_t (sampling - policy) > delta: bad completions that the policy
    would hardly produce any more. `sampling` is what the generator reported, so that staleness and generator/trainer
    mismatch both count. A NaN keeps the sequence, and with it the NaN.
    """
    drift_N = sequence_mean(sampling_T - policy_T.detach(), sequence_of_token_T, len(advantages_N))
    return ~((advantages_N < 0) & (drift_N > delta))
