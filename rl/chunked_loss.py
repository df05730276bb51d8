"""The policy loss some tokens at a time, for the way that makes its gradient while a chunk's logits are there."""

from dataclasses import replace

from torch import Tensor

from rl.correction import off_policy_kept
from rl.loss import SequenceTerms, policy_loss, sequence_terms
from rl.objective import Denominators, Objective
from training.logprobs import LossOf, Tokens

_LARGEST_TAKEN_BACK = 4.0  # log ratio: e^4 float32 roundings are 7e-6


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
    which differ by the steps since; sequences for which that was wrong are asked for once more, for the difference.
    All are, where a ratio among these is so large that taking its share back would leave the rounding of it.
    """
    delta = objective.sequence_mask_delta
    guessed = sequence_terms(old_T, old_T, sampling_T, advantages_N, sequence_of_token_T, objective, denominators)
    right: SequenceTerms | None = None

    def share(policy_C: Tensor, entropy_C: Tensor, tokens: Tokens, owed: SequenceTerms) -> Tensor:
        ref_C, sampling_C = (None if values is None else values[tokens] for values in (ref_T, sampling_T))
        loss, _ = policy_loss(
            policy_C, old_T[tokens], ref_C, sampling_C, advantages_N, sequence_of_token_T[tokens], objective,
            denominators, entropy_C, owed.part(tokens),
        )  # fmt: skip
        return loss

    def of_tokens(policy_C: Tensor, entropy_C: Tensor, tokens: Tokens) -> Tensor:
        loss = share(policy_C, entropy_C, tokens, guessed)
        return loss if right is None else share(policy_C, entropy_C, tokens, right) - loss

    def moved(policy_T: Tensor) -> Tensor | None:
        nonlocal guessed, right
        assert sampling_T is not None and delta is not None
        found = replace(guessed, kept_N=off_policy_kept(policy_T, sampling_T, advantages_N, sequence_of_token_T, delta))
        moved_T = (found.kept_N != guessed.kept_N)[sequence_of_token_T]
        if (policy_T - old_T)[moved_T].gt(_LARGEST_TAKEN_BACK).any():
            guessed = found
            return None
        right = found
        return moved_T.nonzero().squeeze(1)

    return LossOf(of_tokens, None if delta is None else moved)
