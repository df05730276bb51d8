"""Distillation from a teacher's most likely tokens: KL over K of them, and all others as one more outcome.

    q_k = student's probability of the teacher's token k, q_0 = 1 - sum_k q_k; p likewise for the teacher
    forward: sum_k p_k log(p_k / q_k)    (Hinton et al., arXiv:1503.02531: covers what the teacher might say)
    reverse: sum_k q_k log(q_k / p_k)    (MiniLLM, arXiv:2306.08543: says what the teacher likes best)

with k = 0 in the sums. Merging outcomes never makes a KL larger, so this is a lower bound of the KL over the whole
vocabulary, and zero tail mass makes it exact. Without the tail the student could move mass outside for nothing; how
top-k probabilities alone mislead a student is shown in arXiv:2503.16870.

Axes: T tokens, C of them in a chunk, K teacher tokens, V vocabulary, D width.
"""

from typing import Literal

import torch
from torch import Tensor

from training.logprobs import Tokens, selected_loss

Direction = Literal["forward", "reverse"]
# Half a unit in the last place of float32 below 1: logprobs in float32 cannot tell a smaller tail from none.
_SMALLEST_TAIL = 2.0**-24


def topk_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_ids_TK: Tensor,
    teacher_logprobs_TK: Tensor,
    direction: Direction = "forward",
    temperature: float = 1.0,
    weights_T: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(sum over tokens of weight times KL, KL of each token [T] without gradient), nats, float32.

    hidden_TD: float [T, D] of the student; weight_VD: float [V, D], its head; teacher_ids_TK: int64 [T, K], different
    within a token; teacher_logprobs_TK: float [T, K], over the teacher's whole vocabulary and at the same temperature;
    weights_T: float [T], 1 when None. Backward may be called once only (see training.logprobs.token_loss).
    Raises ValueError for shapes that do not fit, repeated ids, and probabilities that sum to more than 1.
    """
    _check(hidden_TD, teacher_ids_TK, teacher_logprobs_TK)
    kl_T = hidden_TD.new_empty(len(hidden_TD), dtype=torch.promote_types(hidden_TD.dtype, torch.float32))
    weights_T = torch.ones_like(kl_T) if weights_T is None else weights_T

    def of_tokens(student_CK: Tensor, _: Tensor | None, chunk: Tokens) -> Tensor:
        kl_C = merged_kl(teacher_logprobs_TK[chunk].to(student_CK), student_CK, direction)
        kl_T[chunk] = kl_C.detach()
        return (weights_T[chunk] * kl_C).sum()

    return selected_loss(hidden_TD, weight_VD, teacher_ids_TK, of_tokens, temperature), kl_T


def merged_kl(teacher_CK: Tensor, student_CK: Tensor, direction: Direction) -> Tensor:
    """KL [C] between two sets of K logprobs, each with the rest of its mass as one more outcome."""
    teacher, student = _with_tail(teacher_CK), _with_tail(student_CK)
    if direction == "reverse":
        teacher, student = student, teacher
    return (teacher.exp() * (teacher - student)).sum(-1)


def _with_tail(logprobs_CK: Tensor) -> Tensor:
    tail_C1 = (1 - logprobs_CK.exp().sum(-1, keepdim=True)).clamp(min=_SMALLEST_TAIL)
    return torch.cat([logprobs_CK, tail_C1.log()], dim=-1)


def _check(hidden_TD: Tensor, ids_TK: Tensor, logprobs_TK: Tensor) -> None:
    if ids_TK.ndim != 2 or ids_TK.shape != logprobs_TK.shape or len(ids_TK) != len(hidden_TD):
        raise ValueError(
            f"topk_kl: teacher ids {list(ids_TK.shape)} and logprobs {list(logprobs_TK.shape)} must both be [T, K] for "
            f"the {len(hidden_TD)} tokens of the student"
        )
    ordered = ids_TK.sort(dim=-1).values
    if repeated := int((ordered[:, 1:] == ordered[:, :-1]).any(-1).sum()):
        raise ValueError(f"topk_kl: the teacher ids of {repeated} tokens are not all different")
    if len(ids_TK) and (mass := float(logprobs_TK.double().exp().sum(-1).max())) > 1 + 1e-3:
        raise ValueError(
            f"topk_kl: teacher probabilities of a token sum to {mass:.4f}; logprobs must be over its whole vocabulary"
        )
