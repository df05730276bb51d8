"""Random ragged mini-batches for the policy loss, and the terms its references share, in plain floats."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

from rl.loss import policy_loss
from rl.objective import Denominators, Objective

MAX_LENGTH = 11


def ppo_term(log_ratio, advantage, low, high):
    """min(rho A, clip(rho) A), and its derivative by log rho."""
    rho = math.exp(log_ratio)
    clipped = min(max(rho, 1 - low), 1 + high)
    if rho * advantage <= clipped * advantage:
        return rho * advantage, rho * advantage
    return clipped * advantage, 0.0


def k3(policy, ref):
    """pi_ref/pi - log(pi_ref/pi) - 1, and its derivative by log pi."""
    return math.exp(ref - policy) - (ref - policy) - 1, 1 - math.exp(ref - policy)


@st.composite
def mini_batches(draw):
    """Sequences with all four logprobs; `scale` goes from nearly on-policy to ratios far beyond every clip range."""
    lengths = draw(st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=7))
    scale = draw(st.sampled_from([1e-4, 0.1, 1.0, 3.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group = []
    for length in lengths:
        policy = -rng.exponential(1.0, length)
        offset = rng.normal(0, scale)
        noisy = lambda values, by=scale, shift=0.0: (values + shift + rng.normal(0, by, len(values))).tolist()  # noqa: E731
        group.append(
            {
                "policy": policy.tolist(),
                "old": noisy(policy),
                "ref": noisy(policy),
                "sampling": noisy(policy, 0.1, offset),
                "advantage": float(rng.normal() * (rng.random() > 0.2)),
            }
        )
    return group


def tensors(group, dtype=torch.float64):
    flat = {
        name: torch.tensor([x for o in group for x in o[name]], dtype=dtype)
        for name in ("policy", "old", "ref", "sampling")
    }
    flat["policy"].requires_grad_()
    advantages = torch.tensor([o["advantage"] for o in group], dtype=dtype)
    owner = torch.tensor([i for i, o in enumerate(group) for _ in o["policy"]], dtype=torch.int64)
    return flat, advantages, owner


def denominators_of(group):
    return Denominators.of([len(o["policy"]) for o in group], max_length=MAX_LENGTH)


def run(group, objective: Objective, denominators=None):
    flat, advantages, owner = tensors(group)
    loss, sums = policy_loss(
        flat["policy"],
        flat["old"],
        flat["ref"],
        flat["sampling"],
        advantages,
        owner,
        objective,
        denominators or denominators_of(group),
    )
    loss.backward()
    assert flat["policy"].grad is not None
    return loss.item(), flat["policy"].grad.tolist(), sums


def one(policy, old, advantage, ref=None, sampling=None):
    return {
        "policy": policy,
        "old": old,
        "ref": policy if ref is None else ref,
        "sampling": old if sampling is None else sampling,
        "advantage": advantage,
    }


def flatten(nested):
    return [x for row in nested for x in row]
