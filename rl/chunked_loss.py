"""The policy loss some tokens at a time, for the way that makes its gradient while a chunk's logits are there."""

from dataclasses import replace

import torch
from torch import Tensor

from rl.correction import off_policy_kept
from rl.loss import policy_loss, sequence_terms
from rl.objective import Denominators, Objective
from training.logprobs import LossOf


def loss_in_chunks(
    old_T: Tensor,
    ref_T: Tensor | None,
    sampling_T: Tensor | None,
    advantages_N: Tensor,
    sequence_of_token_T: Tensor,
    objective: Objective,
    denominators: Denominators,
) -> LossOf:
    """`rl.loss.policy_loss` of whole sequences, for objectives with `made_in_chunks`.

    The off-policy sequence mask looks at the policy's logprobs of a whole sequence. It is guessed from the old ones,
    which differ by the steps since; where that was wrong for any sequence, the loss is made again by the right mask.
    """
    delta = objective.sequence_mask_delta
    owed = sequence_terms(old_T, old_T, sampling_T, advantages_N, sequence_of_token_T, objective, denominators)

    def of_tokens(policy_C: Tensor, entropy_C: Tensor, tokens: slice) -> Tensor:
        ref_C, sampling_C = (None if values is None else values[tokens] for values in (ref_T, sampling_T))
        loss, _ = policy_loss(
            policy_C, old_T[tokens], ref_C, sampling_C, advantages_N, sequence_of_token_T[tokens], objective,
            denominators, entropy_C, owed.part(tokens),
        )  # fmt: skip
        return loss

    def settled(policy_T: Tensor) -> bool:
        nonlocal owed
        assert sampling_T is not None and delta is not None
        guessed = owed.kept_N
        owed = replace(owed, kept_N=off_policy_kept(policy_T, sampling_T, advantages_N, sequence_of_token_T, delta))
        return torch.equal(guessed, owed.kept_N)

    return LossOf(of_tokens, None if delta is None else settled)
