"""Training DeepSeek-V3.2's lightning indexer, which chooses the tokens that attention may see (arXiv:2512.02556, 2.1).

For query t and token s <= t, with heads h, an indexer computes I_ts = sum_h w_th ReLU(q_th . k_s); attention sees the
index_topk tokens S_t of highest I_t. It learns from attention: p_t is the attention of all heads, added up and divided
by its sum, and the loss of a layer is

    warmup    sum_t KL(p_t || softmax(I_t))          over all s <= t, while attention is dense and all else stands still
    joint     sum_t KL(p_t || softmax(I_t over S_t)) while attention sees S_t alone, so that p_t lies in S_t too

The inputs of an indexer are detached, and so is p: it learns from this loss alone, and the rest of the model from its
own. Like transformers' class, in the precision of the model: without FP8 and without the Hadamard transform, which
changes no score.

Axes: S sequences of a block, L their length, C queries at a time, K keys, H heads (of the indexer or of attention).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Indexer, apply_rotary_pos_emb

from models.attention import PackedLayout
from models.recompute import recomputing

Stage = Literal["warmup", "joint"]
_SCORES = 1 << 24  # scores of all heads that are held at a time


class Index(NamedTuple):
    """What an indexer makes of its tokens. A tuple, because FSDP2 looks for its tensors there."""

    query_BTHD: Tensor
    key_BTD: Tensor
    weight_BTH: Tensor  # scales included

    def scores(self, queries: slice) -> tuple[Tensor, Tensor]:
        """I [S, C, K] of a span of queries for all keys up to its end, and what ReLU leaves of each head [S, C, H, K].
        At least float32."""
        key_SDK = _fine(self.key_BTD[:, : queries.stop]).transpose(1, 2)
        active_SCHK = F.relu(_fine(self.query_BTHD[:, queries]) @ key_SDK[:, None])
        return (_fine(self.weight_BTH[:, queries])[:, :, None] @ active_SCHK)[:, :, 0], active_SCHK

    def add_gradients(self, of: "Index", queries: slice, grad_SCK: Tensor, active_SCHK: Tensor) -> None:
        """To this one, the gradients, those of the tensors of `of` by way of the scores of `queries`."""
        query_SCHD, weight_SCH = _fine(of.query_BTHD[:, queries]), _fine(of.weight_BTH[:, queries])
        self.weight_BTH[:, queries] = (active_SCHK @ grad_SCK[..., None])[..., 0]
        grad_SCHK = (weight_SCH[..., None] * grad_SCK[:, :, None]).masked_fill_(active_SCHK <= 0, 0.0)
        self.query_BTHD[:, queries] = grad_SCHK @ _fine(of.key_BTD[:, None, : queries.stop])
        self.key_BTD[:, : queries.stop] += grad_SCHK.flatten(1, 2).transpose(1, 2) @ query_SCHD.flatten(1, 2)


def wake(policy: nn.Module, stage: Stage) -> None:
    """Let the indexers inside `policy`, which rest until then (models.attention.attend_to_all), work and learn. In
    warm-up nothing else does: no other weight takes a gradient."""
    if stage == "warmup":
        policy.requires_grad_(False)
    for indexer in policy.modules():
        if isinstance(indexer, DeepseekV32Indexer):
            indexer.forward = partial(_index, indexer)  # pyright: ignore[reportAttributeAccessIssue]
            if stage == "warmup":
                indexer.requires_grad_(True)


def awake(module: nn.Module) -> list[nn.Module]:
    """The indexers inside `module` that work."""
    return [m for m in module.modules() if isinstance(m, DeepseekV32Indexer) and isinstance(m.forward, partial)]


def _index(self: Any, hidden_BTD, latent_BTR, position_embeddings, *args, **kwargs) -> Index:
    """In place of DeepseekV32Indexer.forward, which has no gradient: the same, up to the scores."""
    hidden_BTD, latent_BTR = hidden_BTD.detach(), latent_BTR.detach()
    query_BTHD = self.wq_b(latent_BTR).unflatten(-1, (self.n_heads, self.head_dim))
    key_BTD = self.k_norm(self.wk(hidden_BTD))
    width = self.qk_rope_head_dim
    turned_BTHR, turned_BT1R = apply_rotary_pos_emb(
        query_BTHD[..., :width], key_BTD[:, :, None, :width], *position_embeddings, unsqueeze_dim=2
    )
    query_BTHD = torch.cat([turned_BTHR, query_BTHD[..., width:]], dim=-1)
    key_BTD = torch.cat([turned_BT1R[:, :, 0], key_BTD[..., width:]], dim=-1)
    weight_BTH = self.weights_proj(hidden_BTD) * (self.n_heads**-0.5 * self.softmax_scale)
    return Index(query_BTHD, key_BTD, weight_BTH)


class Lessons:
    """What a pass has found. No dataclass, because FSDP2 hands layers a copy of those, lists included."""

    def __init__(self):
        self.losses: list[Tensor] = []  # of each layer: summed over tokens, nats, with gradient
        self.recalled: list[Tensor] = []  # warm-up, of each block: [2] as _Lesson.recalled


@dataclass(frozen=True, slots=True)
class TaughtLayout(PackedLayout):
    """A packed row whose attention teaches the indexers, over one pass."""

    stage: Stage
    lessons: Lessons

    @classmethod
    def over(cls, layout: PackedLayout, stage: Stage) -> "TaughtLayout":
        return cls(layout.gathers, layout.restore, stage, Lessons())

    def attend_indexed(self, module: Any, query, key, value, scaling: float, index: Index) -> Tensor:
        """As `attend`, where the layer has an indexer that is awake."""
        heads_first = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        outputs, losses = [], []
        for gather in self.gathers:
            q, k, v = (tensor[gather].transpose(1, 2) for tensor in heads_first)  # [S, H, L, D]
            of_block = Index(*(tensor[0][gather] for tensor in index))
            seen_SLL = _chosen(of_block, module.indexer.index_topk) if self.stage == "joint" else None
            allowed = None if seen_SLL is None else seen_SLL[:, None]
            out = F.scaled_dot_product_attention(q, k, v, allowed, is_causal=allowed is None, scale=scaling)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
            lesson = _Lesson(q.detach(), k.detach(), scaling, _real(gather), seen_SLL, module.indexer.index_topk)
            losses.append(_Divergence.apply(*of_block, lesson))
            if lesson.recalled is not None:
                self.lessons.recalled.append(lesson.recalled)
        if not recomputing():
            self.lessons.losses.append(torch.stack(losses).sum())
        return torch.cat(outputs)[self.restore].unsqueeze(0)


@dataclass(slots=True)
class _Lesson:
    """What the indexer of a layer is to learn from a block."""

    query_SHLD: Tensor
    key_SHLD: Tensor
    scaling: float
    real_SL: Tensor  # bool: no padding
    seen_SLL: Tensor | None  # bool; None: all earlier tokens
    top_k: int
    recalled: Tensor | None = None  # [2]: of the top_k tokens of p, how many are in the indexer's; how many there are

    def teach(self, index: Index, queries: slice, gradients: Index) -> Tensor:
        """The summed KL of a span of queries; its gradients are added to `gradients`."""
        hidden_SCK = _later(queries, index.key_BTD.device)[None]
        if self.seen_SLL is not None:
            hidden_SCK = ~self.seen_SLL[:, queries, : queries.stop]
        target_SCK = self._target(queries, hidden_SCK)
        scores_SCK, active_SCHK = index.scores(queries)
        scores_SCK = scores_SCK.masked_fill_(hidden_SCK, float("-inf"))
        if self.seen_SLL is None:
            self._count(target_SCK, scores_SCK, queries)
        logprobs_SCK = torch.log_softmax(scores_SCK, dim=-1).masked_fill_(hidden_SCK, float("-inf"))
        real_SC1 = self.real_SL[:, queries, None]
        gradients.add_gradients(index, queries, (logprobs_SCK.exp() - target_SCK) * real_SC1, active_SCHK)
        kl_SCK = torch.xlogy(target_SCK, target_SCK) - target_SCK * logprobs_SCK.masked_fill_(hidden_SCK, 0.0)
        return (kl_SCK * real_SC1).sum()

    def _target(self, queries: slice, hidden_SCK: Tensor) -> Tensor:
        """p [S, C, K]: the mean over heads, each of which sums to 1."""
        scores = _fine(self.query_SHLD[:, :, queries]) @ _fine(self.key_SHLD[:, :, : queries.stop]).transpose(2, 3)
        scores = (scores * self.scaling).masked_fill(hidden_SCK[:, None], float("-inf"))
        return torch.softmax(scores, dim=-1).mean(dim=1)

    def _count(self, target_SCK: Tensor, scores_SCK: Tensor, queries: slice) -> None:
        """Over the queries that have more than top_k tokens to choose from."""
        first = max(self.top_k - queries.start, 0)
        real_SC = self.real_SL[:, queries][:, first:]
        if not real_SC.numel():
            return
        wanted, found = (_top(part[:, first:], self.top_k) for part in (target_SCK, scores_SCK))
        both = (wanted & found)[real_SC].sum()
        counts = torch.stack([both, real_SC.sum() * self.top_k])
        self.recalled = counts if self.recalled is None else self.recalled + counts


class _Divergence(torch.autograd.Function):
    """The loss of a block and its gradients in one pass, some queries at a time; backward scales them."""

    @staticmethod
    def forward(ctx: Any, query_SLHD: Tensor, key_SLD: Tensor, weight_SLH: Tensor, lesson: _Lesson) -> Tensor:
        total = _fine(query_SLHD).new_zeros(())
        if recomputing():  # the first pass has made the gradient
            return total
        index = Index(query_SLHD, key_SLD, weight_SLH)
        gradients = Index(*(torch.zeros_like(_fine(tensor)) for tensor in index))
        for queries in _spans(lesson.query_SHLD, query_SLHD.shape[2]):
            total += lesson.teach(index, queries, gradients)
        ctx.gradients = [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, index, strict=True)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradient * grad for gradient in ctx.gradients), None)


@torch.no_grad()
def _chosen(index: Index, top_k: int) -> Tensor:
    """bool [S, L, L]: the tokens that each query may see."""
    count, length = index.weight_BTH.shape[:2]
    seen_SLL = torch.zeros(count, length, length, dtype=torch.bool, device=index.key_BTD.device)
    for queries in _spans(index.query_BTHD.transpose(1, 2)):
        later_CK = _later(queries, seen_SLL.device)
        scores_SCK = index.scores(queries)[0].masked_fill(later_CK, float("-inf"))
        seen_SLL[:, queries, : queries.stop] = _top(scores_SCK, top_k) & ~later_CK
    return seen_SLL


def _top(scores_SCK: Tensor, top_k: int) -> Tensor:
    """bool [S, C, K]: the top_k highest of each row."""
    best = scores_SCK.topk(min(top_k, scores_SCK.shape[-1]), dim=-1).indices
    return torch.zeros_like(scores_SCK, dtype=torch.bool).scatter_(-1, best, True)


def _later(queries: slice, device: torch.device) -> Tensor:
    """bool [C, K]: keys that stand after the query."""
    query_C1 = torch.arange(queries.start, queries.stop, device=device)[:, None]
    return torch.arange(queries.stop, device=device) > query_C1


def _spans(query_SHLD: Tensor, heads: int = 0) -> Iterator[slice]:
    """Queries [0, L) in spans whose scores are few enough."""
    count, own_heads, length, _ = query_SHLD.shape
    size = max(1, _SCORES // (count * max(heads, own_heads) * length))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _real(gather_SL: Tensor) -> Tensor:
    """bool [S, L]: PackedLayout pads a sequence by repeating its last token."""
    real_SL = torch.ones_like(gather_SL, dtype=torch.bool)
    real_SL[:, 1:] = gather_SL[:, 1:] != gather_SL[:, :-1]
    return real_SL


def _fine(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
