"""Group-relative advantages: how much better a completion did than the others of its group.

    A_i = (r_i - mean(r)) / std(r)          GRPO, DeepSeek-R1 eq. 3
    A_i =  r_i - mean(r)                    DeepSeek-V3.2, Dr. GRPO

None of the papers says which standard deviation, or what happens when all rewards are equal. Ours: the population's,
without an epsilon, and zero advantage for a group without spread. Computed on whole groups, before completions are
shuffled into mini-batches, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl.objective import Objective

# Rewards are sums of a few weighted terms; two that differ by less than this differ by rounding only.
SPREAD_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAdvantages:
    advantages: list[float | None]  # [G]; None: not trained on
    has_signal: bool  # at least two scorable completions with different rewards


def assign_advantages(
    rewards: Sequence[float | None],
    lengths: Sequence[int],
    truncated: Sequence[bool],
    max_length: int,
    objective: Objective,
) -> GroupAdvantages:
    """Advantages of one group under an objective: overlong treatment, baseline, dynamic sampling.

    Args:
        rewards: [G], None where unscorable.
        lengths: [G] completion tokens, for `overlong: soft`.
        truncated: [G] stopped by the length limit, for `overlong: mask`.
        max_length: the longest completion the rollout may sample, tokens.

    `has_signal` and dynamic sampling look at the rewards as given, before the overlong penalty: a spread of lengths
    alone is no signal. (DAPO judges groups by correctness, its only other reward.) A masked truncated completion still
    counts in the group's mean: it is evidence about the problem.
    """
    shaped = list(rewards)
    if objective.overlong == "soft":
        buffer = max(1, round(objective.overlong_buffer * max_length))
        penalties = [overlong_penalty(length, max_length, buffer) for length in lengths]
        shaped = [None if r is None else r + p for r, p in zip(rewards, penalties, strict=True)]
    has_signal = group_advantages(rewards, divide_by_std=False).has_signal
    advantages: list[float | None] = group_advantages(shaped, divide_by_std=objective.advantage_std).advantages
    if objective.overlong == "mask":
        advantages = [None if cut else a for a, cut in zip(advantages, truncated, strict=True)]
    if objective.dynamic_sampling and not has_signal:
        advantages = [None for _ in advantages]
    return GroupAdvantages(advantages=advantages, has_signal=has_signal)


def group_advantages(rewards: Sequence[float | None], divide_by_std: bool) -> GroupAdvantages:
    """Advantages of one group, [G], from its rewards, [G].

    None (unscorable) stays None and takes no part in mean and standard deviation. A group with fewer than two scorable
    completions, or without spread, has no signal: its scorable completions get exactly 0.
    Raises ValueError for a reward that is not finite.
    """
    scorable = np.array([r for r in rewards if r is not None], dtype=np.float64)
    if not np.isfinite(scorable).all():
        raise ValueError(f"a reward must be a finite number, or None when unscorable; got {list(rewards)}")
    if len(scorable) < 2 or np.ptp(scorable) <= SPREAD_TOLERANCE:
        return GroupAdvantages(advantages=[None if r is None else 0.0 for r in rewards], has_signal=False)
    mean = float(scorable.mean())
    scale = float(scorable.std()) if divide_by_std else 1.0
    return GroupAdvantages(
        advantages=[None if r is None else (r - mean) / scale for r in rewards],
        has_signal=True,
    )


def overlong_penalty(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (eq. 13), added to the reward: 0 down to -1 over the last `buffer` tokens."""
    if not 0 < buffer <= max_length:
        raise ValueError(f"overlong buffer must lie in [1, {max_length}], the maximum completion length, got {buffer}")
    tokens_inside = min(max(length - (max_length - buffer), 0), buffer)
    return -tokens_inside / buffer
