"""Distillation from a teacher's whole vocabulary, of which only its final hidden states travel.

    forward: sum_v p_v log(p_v / q_v)    (Hinton et al., arXiv:1503.02531)
    reverse: sum_v q_v log(q_v / p_v)    (DeepSeek-V4, arXiv:2606.19348, Eq. 29)

for the student's q and the teacher's p. As in DeepSeek-V4 (section 5.2) the teacher's logits are made again from its
final hidden states by its head, some tokens at a time, so that [T, V] is never whole on either side and what is stored
per token is D numbers and not V. A KL estimated from the sampled token alone would vary too much (section 5.1 there).

Axes: T tokens, C of them in a chunk, V vocabulary, D and E widths of student and teacher.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.head_chunks import CHUNK_ELEMENTS
from training.topk_kl import Direction


def vocabulary_kl(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    teacher_TE: Tensor,
    teacher_VE: Tensor,
    direction: Direction = "reverse",
    temperature: float = 1.0,
    weights_T: Tensor | None = None,
) -> Tensor:
    """Sum over tokens of weight times KL, nats, a float32 scalar (float64 stays float64).

    hidden_TD, weight_VD: float, the student's final hidden states and head; teacher_TE, teacher_VE: likewise of the
    teacher, over the same tokens of the vocabulary. Both softmaxes are at `temperature`; weights_T: float [T], 1 when
    None. The gradient is made here, so backward may be called once only. Raises ValueError for shapes that do not fit.
    """
    if len(teacher_VE) != len(weight_VD) or len(teacher_TE) != len(hidden_TD):
        raise ValueError(
            f"vocabulary_kl: the teacher has {len(teacher_TE)} tokens and {len(teacher_VE)} logits of each, the "
            f"student {len(hidden_TD)} and {len(weight_VD)}; heads of different sizes can be compared by top_k"
        )
    keep = torch.is_grad_enabled()
    return _VocabularyKL.apply(hidden_TD, weight_VD, teacher_TE, teacher_VE, direction, temperature, weights_T, keep)  # pyright: ignore[reportReturnType]


class _VocabularyKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD, weight_VD, teacher_TE, teacher_VE, direction: Direction, temperature, weights_T, keep: bool
    ) -> Tensor:
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        student, teacher = (hidden_TD.to(dtype), weight_VD.to(dtype)), (teacher_TE.to(dtype), teacher_VE.to(dtype))
        wanted = keep and any(ctx.needs_input_grad[:2])
        grad_TD = torch.zeros_like(student[0]) if wanted else None
        grad_VD = torch.zeros_like(student[1]) if wanted and ctx.needs_input_grad[1] else None
        total = hidden_TD.new_zeros((), dtype=dtype)
        # Four buffers of a chunk's size live at once, where the losses of training.logprobs hold one.
        elements = CHUNK_ELEMENTS.get(hidden_TD.device.type, CHUNK_ELEMENTS["cpu"]) // 4
        size = max(1, elements // len(weight_VD))
        for chunk in (slice(start, start + size) for start in range(0, len(hidden_TD), size)):
            student_CV, teacher_CV = (
                torch.log_softmax(hidden[chunk] @ weight.t() / temperature, dim=-1)
                for hidden, weight in (student, teacher)
            )
            kl_C, grad_CV = _kl_and_gradient(student_CV, teacher_CV, direction)
            if weights_T is not None:
                kl_C, grad_CV = kl_C * weights_T[chunk], grad_CV.mul_(weights_T[chunk, None])
            total += kl_C.sum()
            if grad_TD is not None:
                grad_CV /= temperature
                grad_TD[chunk] = grad_CV @ student[1]
            if grad_VD is not None:
                grad_VD.addmm_(grad_CV.t(), student[0][chunk])
        ctx.gradients = tuple(
            None if grad is None else grad.to(of.dtype) for grad, of in ((grad_TD, hidden_TD), (grad_VD, weight_VD))
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss made its gradient in the forward pass and gives it away once: call it again")
        return (*(None if g is None else g.mul_(grad) for g in gradients), *[None] * 6)


def _kl_and_gradient(student_CV: Tensor, teacher_CV: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """KL [C], and its gradient with respect to the student's logits [C, V], in the buffer of `student_CV`.

    forward: q - p; reverse: q (log q - log p - KL).
    """
    gap_CV = student_CV - teacher_CV
    if direction == "forward":
        p_CV = teacher_CV.exp_()
        return -(p_CV * gap_CV).sum(-1), student_CV.exp_().sub_(p_CV)
    q_CV = student_CV.exp_()
    kl_C = (q_CV * gap_CV).sum(-1)
    return kl_C, gap_CV.sub_(kl_C[:, None]).mul_(q_CV)
