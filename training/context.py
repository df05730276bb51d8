"""Context parallel: the tokens of a row over several ranks, each with a share of the activations.

All but attention works token by token. There every rank has the queries of its tokens and gathers the keys and values
of the others, as Llama 3 was trained (arXiv:2407.21783, section 3.3.2). A row is cut into 2C pieces of equal size, and
rank i has pieces i and 2C - 1 - i, so that all attend to about as many keys. The final hidden states are gathered too:
ranks that share a row then compute the same loss of it, and what is above `training.policy` sees whole rows.

Axes: C ranks, T tokens of a row, N of them here, H heads, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from models.attention import attend_causally


@dataclass(frozen=True, slots=True)
class ContextGroup:
    """The ranks with the same rows and other tokens of them, and this one's place."""

    group: dist.ProcessGroup
    place: int
    size: int

    def missing(self, tokens: int) -> int:
        """How many tokens a row lacks for every rank to have some; they are added as a sequence that nobody reads."""
        return max(0, 2 * self.size - tokens)

    def _cuts(self, tokens: int) -> list[int]:
        """[2C + 1]: where the pieces of a row begin, and its end."""
        tokens += self.missing(tokens)
        return [tokens * piece // (2 * self.size) for piece in range(2 * self.size + 1)]

    def here(self, tokens: int) -> torch.Tensor:
        """Which tokens of a row this rank has, int64 [N], ascending; beyond the row where it lacks some."""
        return self._of(self.place, self._cuts(tokens))

    def _of(self, place: int, cuts: Sequence[int]) -> torch.Tensor:
        pieces = (place, 2 * self.size - 1 - place)
        return torch.cat([torch.arange(cuts[piece], cuts[piece + 1]) for piece in pieces])

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Over the ranks, without gradient."""
        summed = tensor.detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    def order(self, tokens: int) -> torch.Tensor:
        """int64 [T]: where each token of a row stands in the ranks' tokens, one share after the other."""
        cuts = self._cuts(tokens)
        return torch.cat([self._of(place, cuts) for place in range(self.size)]).argsort()

    def part(self, lengths: Sequence[int], device: torch.device) -> "ContextPart":
        """Of a row of sequences of these lengths."""
        if missing := self.missing(sum(lengths)):
            lengths = [*lengths, missing]
        cuts = self._cuts(tokens := sum(lengths))
        shares = [self._of(place, cuts) for place in range(self.size)]
        most = max(map(len, shares))
        source_T = torch.empty(tokens, dtype=torch.int64)
        for place, share in enumerate(shares):
            source_T[share] = place * most + torch.arange(len(share))
        return ContextPart(self, shares[self.place].to(device), source_T.to(device), most, list(self._queries(lengths)))

    def _queries(self, lengths: Sequence[int]):
        """Runs of queries of this rank within one sequence: (first, number, first key, number of keys). The first
        counts tokens of this rank, keys are tokens of the row."""
        cuts, at = self._cuts(sum(lengths)), 0
        for piece in (self.place, 2 * self.size - 1 - self.place):
            first, last = cuts[piece], cuts[piece + 1]
            start = 0
            for length in lengths:
                begin, end = max(first, start), min(last, start + length)
                if begin < end:
                    yield at + begin - first, end - begin, start, end - start
                start += length
            at += last - first


@dataclass(frozen=True, slots=True)
class ContextPart:
    """The tokens of one row that this rank has, as a models.attention.Layout."""

    context: ContextGroup
    here_N: torch.Tensor  # int64, places in the row
    source_T: torch.Tensor  # int64: where each token of the row stands in what was gathered, C shares of `most`
    most: int  # tokens that a rank has at most
    queries: list[tuple[int, int, int, int]]

    def share(self, of_row_1T: torch.Tensor) -> torch.Tensor:
        """[1, T, ...] of the row -> [1, N, ...] of this rank's tokens."""
        missing = len(self.source_T) - of_row_1T.shape[1]
        padding = of_row_1T.new_zeros(1, missing, *of_row_1T.shape[2:])
        return torch.cat([of_row_1T, padding], dim=1)[:, self.here_N]

    def whole(self, states_1ND: torch.Tensor) -> torch.Tensor:
        """[1, T, D] of all ranks' tokens, on each. Backward takes the gradient of its own: the loss is the same one."""
        return _Gather.apply(states_1ND[0], self, False)[None]

    def attend(self, module: Any, query, key, value, scaling: float) -> torch.Tensor:
        """Causal attention of this rank's tokens [1, H, N, D] to those of their sequences -> [1, N, H, Dv]."""
        keys, values = (_Gather.apply(t[0].transpose(0, 1), self, True).transpose(0, 1)[None] for t in (key, value))
        parts = []
        for first, count, start, seen in self.queries:
            q, k, v = query.narrow(2, first, count), keys.narrow(2, start, seen), values.narrow(2, start, seen)
            parts.append(attend_causally(q, k, v, scaling))
        return torch.cat(parts, dim=2).transpose(1, 2)

    def attend_whole(self, module: Any, tokens: Any) -> torch.Tensor:
        raise ValueError("context parallel: attention that compresses tokens is not there (MeshConfig.check_model)")


class _Gather(torch.autograd.Function):
    """[N, ...] of each rank -> [T, ...], the row, on all. add: whether the ranks' gradients are summed, or alike."""

    @staticmethod
    def forward(ctx: Any, share: torch.Tensor, part: ContextPart, add: bool) -> torch.Tensor:
        ctx.part, ctx.add = part, add
        padded = share.new_zeros(part.most, *share.shape[1:])
        padded[: len(share)] = share
        gathered = share.new_empty(part.context.size * part.most, *share.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=part.context.group)
        return gathered[part.source_T]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        part: ContextPart = ctx.part
        if not ctx.add:
            return grad[part.here_N], None, None
        by_rank = grad.new_zeros(part.context.size * part.most, *grad.shape[1:])
        by_rank[part.source_T] = grad
        summed = grad.new_empty(part.most, *grad.shape[1:])
        dist.reduce_scatter_tensor(summed, by_rank, group=part.context.group)
        return summed[: len(part.here_N)], None, None


class SharedGradient(torch.autograd.Function):
    """A weight of which all C ranks compute the same gradient, where gradients of ranks are summed: a C-th of it."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ranks: int) -> torch.Tensor:
        ctx.ranks = ranks
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad / ctx.ranks, None
