"""Token logprobs, entropy and losses from hidden states and the head's weight: the [T, V] logits are never whole.

Two ways to the same gradient. `token_logprobs` gives values that any loss may use; its backward pass computes the
logits again, a fourth matrix product beside the naive path's three. `token_loss` is for losses that are sums over
tokens: it asks for the loss of each chunk while its logits are there, so that three products do, as in Liger Kernel's
fused linear cross-entropy (arXiv:2410.10989, section 3.2). Both hold one chunk of logits (see training.head_chunks).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.head_chunks import ChunkedHead, ChunkSoftmax, SupportTensors, check_support

Tokens = slice | Tensor  # some of 0..T; a tensor is int64 [C]
# Logprobs [C, K] and entropies [C] (None where nobody asked) of a chunk's tokens, and which tokens they are -> its
# share of the loss, a scalar.
ChunkLoss = Callable[[Tensor, Tensor | None, Tokens], Tensor]
# Final hidden states [C, D] of the tokens that predict, and the head's weight [V, D] -> a loss, a scalar.
HeadLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LossOf:
    """A loss that is a sum over tokens.

    tokens: given logprobs [C] and entropies [C] of some tokens, and which they are, their share of the loss, a scalar.
        It must not look at other tokens.
    moved: for shares that depend on more than their token, as on a mask of sequences, and had to be guessed: told all
        logprobs [T], the tokens whose share was guessed wrongly, int64 [M], ascending. `tokens` is then asked for these
        once more, for what is to be added to the loss. None: the loss is made anew, and `tokens` asked for all.
    """

    tokens: Callable[[Tensor, Tensor, Tokens], Tensor]
    moved: Callable[[Tensor], Tensor | None] | None = None


def token_logprobs(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    temperature: float = 1.0,
    support: SupportTensors | None = None,
) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy (nats) of softmax(hidden @ weight.T / temperature), both float32 [T], with gradient.

    hidden_TD: float [T, D]; weight_VD: float [V, D]; targets_T: int64 [T]; temperature > 0. Float64 stays float64.
    support: the tokens that each target was drawn from; the softmax is then over these alone (DeepSeek-V3.2, section
    3.1: keep sampling mask). Raises ValueError when sizes do not add up or a target is not in its own set.
    """
    if support is not None:
        check_support(support, targets_T)
    keep = torch.is_grad_enabled()
    logprobs_TK, entropy_T = _Logprobs.apply(hidden_TD, weight_VD, targets_T[:, None], temperature, support, keep)
    return logprobs_TK.squeeze(1), entropy_T


def token_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    loss_of: LossOf,
    temperature: float = 1.0,
    support: SupportTensors | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A loss that is a sum over tokens, with logprobs and entropy [T] as of `token_logprobs`, but without gradient.

    The gradient is made here, so backward may be called once only. Tokens that `loss_of.moved` names take six matrix
    products in place of three.
    """
    if support is not None:
        check_support(support, targets_T)

    def of_chunk(logprobs_CK: Tensor, entropy_C: Tensor | None, tokens: Tokens) -> Tensor:
        assert entropy_C is not None
        return loss_of.tokens(logprobs_CK.squeeze(1), entropy_C, tokens)

    moved = loss_of.moved
    keep, given = torch.is_grad_enabled(), (hidden_TD, weight_VD, targets_T[:, None])
    loss, logprobs_TK, entropy_T = _LossInForward.apply(*given, of_chunk, temperature, support, True, moved, keep)
    return loss, logprobs_TK.squeeze(1), entropy_T


def summed_nll(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Sum of -log p(target) over all tokens, nats: a scalar, with gradient."""
    return selected_loss(hidden_TD, weight_VD, targets_T[:, None], lambda logprobs_CK, *_: -logprobs_CK.sum())


def selected_loss(
    hidden_TD: Tensor, weight_VD: Tensor, ids_TK: Tensor, loss_of: ChunkLoss, temperature: float = 1.0
) -> Tensor:
    """The loss of `token_loss` with K ids per token: `loss_of` is given logprobs [C, K], and no entropies."""
    keep = torch.is_grad_enabled()
    return _LossInForward.apply(hidden_TD, weight_VD, ids_TK, loss_of, temperature, None, False, None, keep)[0]


class _Logprobs(torch.autograd.Function):
    """Gradients from logits that are computed again, unless there is one chunk only: its softmax is kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD, weight_VD, ids_TK, temperature: float, support: SupportTensors | None, keep: bool
    ) -> tuple[Tensor, Tensor]:
        head = ChunkedHead(hidden_TD, weight_VD, ids_TK, temperature, support)
        logprobs_TK, entropy_T = _empty(head)
        ctx.softmax = None
        for chunk in head.chunks():
            softmax = head.softmax(chunk, entropy=True)
            assert softmax.entropy_C is not None
            logprobs_TK[chunk], entropy_T[chunk] = softmax.logprobs_CK, softmax.entropy_C
            if keep and len(ids_TK) <= head.size:
                ctx.softmax = softmax
        ctx.save_for_backward(hidden_TD, weight_VD, ids_TK)
        ctx.temperature, ctx.support = temperature, support
        ctx.set_materialize_grads(False)  # the entropy's gradient costs something: None where no loss uses it
        return logprobs_TK, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TK: Tensor | None, entropy_grad_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, ids_TK = ctx.saved_tensors
        kept, ctx.softmax = ctx.softmax, None  # its buffer becomes the gradient of the logits
        head = ChunkedHead(hidden_TD, weight_VD, ids_TK, ctx.temperature, ctx.support)
        grad_TD, grad_VD = head.zero_gradients(weight=ctx.needs_input_grad[1])
        grad_TK = torch.zeros_like(ids_TK, dtype=head.dtype) if grad_TK is None else grad_TK
        for chunk in head.chunks():
            softmax = kept or head.softmax(chunk, entropy=entropy_grad_T is not None)
            entropy_grad_C = None if entropy_grad_T is None else entropy_grad_T[chunk]
            head.add_gradients(chunk, softmax, grad_TK[chunk], grad_TD, grad_VD, entropy_grad_C)
        return (*_as_given(ctx, hidden_TD, weight_VD, grad_TD, grad_VD), None, None, None, None)


class _LossInForward(torch.autograd.Function):
    """The loss and its gradients in one pass, and a second over tokens that have moved; backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD, weight_VD, ids_TK, loss_of: ChunkLoss, temperature: float, support, entropy: bool,
        moved: Callable[[Tensor], Tensor | None] | None, keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        head = ChunkedHead(hidden_TD, weight_VD, ids_TK, temperature, support)
        logprobs_TK, entropy_T = _empty(head)
        wanted = keep and any(ctx.needs_input_grad[:2])
        grad_TD, grad_VD = head.zero_gradients(ctx.needs_input_grad[1]) if wanted else (None, None)
        total = hidden_TD.new_zeros((), dtype=head.dtype)
        for chunk in head.chunks():
            softmax = head.softmax(chunk, entropy)
            logprobs_TK[chunk] = softmax.logprobs_CK
            if softmax.entropy_C is not None:
                entropy_T[chunk] = softmax.entropy_C
            total += _add_loss(head, chunk, softmax, loss_of, chunk, grad_TD, grad_VD)
        tokens_M = torch.empty(0) if moved is None else moved(logprobs_TK.squeeze(1))
        if tokens_M is None:
            tokens_M = torch.arange(len(ids_TK), device=ids_TK.device)
            for sums in (total, grad_TD, grad_VD):
                if sums is not None:
                    sums.zero_()
        if len(tokens_M):
            part = head.of(tokens_M)
            grad_MD = None if grad_TD is None else torch.empty_like(part.hidden_TD, dtype=head.dtype)
            for chunk in part.chunks():
                softmax = part.softmax(chunk, entropy)
                total += _add_loss(part, chunk, softmax, loss_of, tokens_M[chunk], grad_MD, grad_VD)
            if grad_TD is not None and grad_MD is not None:
                grad_TD[tokens_M] += grad_MD
        if grad_TD is not None:
            ctx.gradients = _as_given(ctx, hidden_TD, weight_VD, grad_TD, grad_VD)
        ctx.mark_non_differentiable(logprobs_TK, entropy_T)
        return total, logprobs_TK, entropy_T if entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss made its gradient in the forward pass and gives it away once: call it again")
        return (*(None if g is None else g.mul_(grad) for g in gradients), *[None] * 7)


def _empty(head: ChunkedHead) -> tuple[Tensor, Tensor]:
    """Room for logprobs [T, K] and entropies [T]."""
    logprobs_TK = head.hidden_TD.new_empty(head.ids_TK.shape, dtype=head.dtype)
    return logprobs_TK, logprobs_TK.new_empty(len(logprobs_TK))


def _add_loss(
    head: ChunkedHead,
    chunk: slice,
    softmax: ChunkSoftmax,
    loss_of: ChunkLoss,
    tokens: Tokens,
    grad_TD: Tensor | None,
    grad_VD: Tensor | None,
) -> Tensor:
    """The loss of a chunk of `head`, which has these tokens; its gradients go where they are wanted."""
    if grad_TD is None:
        return loss_of(softmax.logprobs_CK, softmax.entropy_C, tokens)
    with torch.enable_grad():
        logprobs_CK = softmax.logprobs_CK.detach().requires_grad_()
        entropy_C = None if softmax.entropy_C is None else softmax.entropy_C.detach().requires_grad_()
        loss = loss_of(logprobs_CK, entropy_C, tokens)
        inputs = [logprobs_CK] if entropy_C is None else [logprobs_CK, entropy_C]
        grad_CK, *rest = torch.autograd.grad(loss, inputs, allow_unused=True)
    grad_CK = torch.zeros_like(logprobs_CK) if grad_CK is None else grad_CK
    head.add_gradients(chunk, softmax, grad_CK, grad_TD, grad_VD, rest[0] if rest else None)  # None: not used
    return loss.detach()


def _as_given(ctx: Any, hidden_TD, weight_VD, grad_TD, grad_VD) -> tuple[Tensor | None, Tensor | None]:
    """Summed gradients in the dtypes of what they belong to; None where nobody wants one."""
    wanted = ctx.needs_input_grad[0]
    return grad_TD.to(hidden_TD.dtype) if wanted else None, None if grad_VD is None else grad_VD.to(weight_VD.dtype)
