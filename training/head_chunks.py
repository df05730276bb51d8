"""A language model's head, some tokens at a time: softmax over the vocabulary and what its gradient adds.

The [T, V] logits are never whole. A chunk's logits become exponentials and then the gradient of the logits in place, so
that a chunk takes one buffer (an eighth more with entropy) and each matrix product runs once.

Axes: C tokens of a chunk, K ids whose logprobs are wanted, S ids of supports, V vocabulary, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Logits held at a time, by device. CPU: 128 MiB in float32, above which benchmarks/logprobs.py got no faster at
# V = 129,280. CUDA: 512 MiB, about 1,000 tokens there, since the head's gradient is read and written once per chunk and
# costs more than its product below that (H100: some 270 FLOP in BF16 per byte). The latter is reckoned, not measured.
CHUNK_ELEMENTS = {"cpu": 1 << 25, "cuda": 1 << 27}

# Ids int64 [S] of one set after the other, and their sizes int64 [T] (see rollouts.records.Support).
SupportTensors = tuple[Tensor, Tensor]
_HALF = (torch.bfloat16, torch.float16)


@dataclass(slots=True)
class ChunkSoftmax:
    """Of one chunk: exps_CV / sums_C[:, None] are the probabilities."""

    exps_CV: Tensor
    sums_C: Tensor
    logprobs_CK: Tensor
    entropy_C: Tensor | None


class ChunkedHead:
    """softmax(hidden @ weight.T / temperature) over a support, if there is one, and logprobs of `ids_TK` in it.

    hidden_TD, weight_VD: any float dtypes; products are accumulated in float32 (float64 inputs: float64).
    Buffers are used again: a ChunkSoftmax is good until the next one.
    """

    def __init__(
        self, hidden_TD: Tensor, weight_VD: Tensor, ids_TK: Tensor, temperature: float, support: SupportTensors | None
    ) -> None:
        self.hidden_TD, self.weight_VD = _operands(hidden_TD, weight_VD)
        self.ids_TK, self.temperature = ids_TK, temperature
        self.dtype = torch.promote_types(self.hidden_TD.dtype, torch.float32)
        self.size = max(1, CHUNK_ELEMENTS.get(hidden_TD.device.type, CHUNK_ELEMENTS["cpu"]) // len(weight_VD))
        self.support = support
        self._supports = None if support is None else _cut(*support, self.size)
        self._buffers: dict[str, Tensor] = {}

    def of(self, tokens_M: Tensor) -> "ChunkedHead":
        """For some of the tokens, int64 [M], ascending, when all have been seen: it has the same buffers."""
        support = None if self.support is None else _select(*self.support, tokens_M)
        part = ChunkedHead(self.hidden_TD[tokens_M], self.weight_VD, self.ids_TK[tokens_M], self.temperature, support)
        part._buffers = self._buffers
        return part

    def chunks(self) -> Iterator[slice]:
        """Which tokens stand in each chunk; none without tokens."""
        tokens = len(self.hidden_TD)
        return (slice(start, min(start + self.size, tokens)) for start in range(0, tokens, self.size))

    def softmax(self, chunk: slice, entropy: bool = False) -> ChunkSoftmax:
        logits_CV = self._buffer("logits", chunk)
        _mm(self.hidden_TD[chunk], self.weight_VD.t(), out=logits_CV)
        if self.temperature != 1:
            logits_CV /= self.temperature
        if self._supports is not None:
            _keep_only(logits_CV, *self._supports[chunk.start // self.size])
        chosen_CK = logits_CV.gather(1, self.ids_TK[chunk])
        largest_C1 = logits_CV.amax(1, keepdim=True)
        logits_CV -= largest_C1
        weighted_C = self._exp_weighted(logits_CV) if entropy else None
        exps_CV = logits_CV if entropy else logits_CV.exp_()
        sums_C = exps_CV.sum(1)
        log_sums_C = sums_C.log()
        entropy_C = None if weighted_C is None else log_sums_C - weighted_C / sums_C
        return ChunkSoftmax(exps_CV, sums_C, chosen_CK - largest_C1 - log_sums_C[:, None], entropy_C)

    def _exp_weighted(self, logits_CV: Tensor) -> Tensor:
        """sum_v exp(l_v) l_v of each row, [C]; the logits become exponentials."""
        sums_C = logits_CV.new_empty(len(logits_CV))
        for rows, part_RV, exps_RV in self._in_parts(logits_CV):
            torch.exp(part_RV, out=exps_RV)
            sums_C[rows] = part_RV.mul_(exps_RV).sum(1)
            part_RV.copy_(exps_RV)
        return sums_C

    def zero_gradients(self, weight: bool) -> tuple[Tensor, Tensor | None]:
        """Sums to start from, in the dtype of accumulation: of the hidden states and, if wanted, of the head."""
        grad_TD = self.hidden_TD.new_empty(self.hidden_TD.shape, dtype=self.dtype)  # `add_gradients` writes each row
        return grad_TD, self.weight_VD.new_zeros(self.weight_VD.shape, dtype=self.dtype) if weight else None

    def add_gradients(
        self,
        chunk: slice,
        softmax: ChunkSoftmax,
        grad_CK: Tensor,
        hidden_TD: Tensor,
        weight_VD: Tensor | None,
        entropy_grad_C: Tensor | None = None,
    ) -> None:
        """Given d loss / d logprobs_CK, and d loss / d entropy_C or None for 0: the chunk's rows of the hidden states'
        gradient, and its part of the head's.

        d logprob_k / d logit_v = [v is id k] - p_v, d entropy / d logit_v = -p_v (log p_v + entropy), so the gradient
        of the logits is made of the exponentials in place.
        """
        grad_CK = grad_CK.to(self.dtype) / self.temperature
        factor_C = -grad_CK.sum(1) / softmax.sums_C
        if entropy_grad_C is None:
            logits_CV = softmax.exps_CV.mul_(factor_C[:, None])
        else:
            logits_CV = self._with_entropy(softmax, factor_C, entropy_grad_C.to(self.dtype) / self.temperature)
        rows_C1 = torch.arange(len(grad_CK), device=grad_CK.device)[:, None]
        logits_CV.index_put_((rows_C1.expand_as(grad_CK), self.ids_TK[chunk]), grad_CK, accumulate=True)
        logits_CV = logits_CV.to(self.hidden_TD.dtype)  # half precision on a GPU: operands as in the forward pass
        _mm(logits_CV, self.weight_VD, out=hidden_TD[chunk])
        if weight_VD is not None:
            _add_mm(weight_VD, logits_CV.t(), self.hidden_TD[chunk])

    def _with_entropy(self, softmax: ChunkSoftmax, factor_C: Tensor, grad_C: Tensor) -> Tensor:
        """exps times (factor - grad / sum (log p + entropy)), in place, some rows at a time."""
        assert softmax.entropy_C is not None
        slope_C = grad_C / softmax.sums_C
        level_C = factor_C - slope_C * (softmax.entropy_C - softmax.sums_C.log())
        smallest = torch.finfo(self.dtype).tiny  # what has no probability adds 0, not 0 times infinity
        for rows, part_RV, logs_RV in self._in_parts(softmax.exps_CV):
            torch.clamp(part_RV, min=smallest, out=logs_RV).log_()
            part_RV.mul_(logs_RV.mul_(-slope_C[rows, None]).add_(level_C[rows, None]))
        return softmax.exps_CV

    def _in_parts(self, chunk_CV: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """An eighth of a chunk at a time: which of its rows, these, and a buffer of their shape."""
        size = max(1, self.size // 8)
        for start in range(0, len(chunk_CV), size):
            rows = slice(start, min(start + size, len(chunk_CV)))
            yield rows, chunk_CV[rows], self._buffer("part", slice(0, rows.stop - start))

    def _buffer(self, name: str, chunk: slice) -> Tensor:
        rows = chunk.stop - chunk.start
        if name not in self._buffers:  # the first chunk is the largest
            self._buffers[name] = self.weight_VD.new_empty(rows, len(self.weight_VD), dtype=self.dtype)
        return self._buffers[name][:rows]


def check_support(support: SupportTensors, targets_T: Tensor) -> None:
    """Raises ValueError when sizes do not add up or a target is not in its own set."""
    ids_S, sizes_T = support
    if len(sizes_T) != len(targets_T) or int(sizes_T.sum()) != len(ids_S):
        raise ValueError(f"support: {len(sizes_T)} sets of {len(ids_S)} ids in all do not fit {len(targets_T)} tokens")
    rows_S = _rows(sizes_T)
    inside_T = torch.zeros_like(targets_T, dtype=torch.bool)
    inside_T[rows_S[ids_S == targets_T[rows_S]]] = True
    if not inside_T.all():
        raise ValueError(
            f"support: {int((~inside_T).sum())} of {len(targets_T)} tokens are not in the set they were drawn from"
        )


def _operands(hidden_TD: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype. CPUs multiply half precision to half precision only, so there it becomes float32."""
    dtype = torch.promote_types(hidden_TD.dtype, weight_VD.dtype)
    if dtype in _HALF and hidden_TD.device.type != "cuda":
        dtype = torch.float32
    return hidden_TD.to(dtype), weight_VD.to(dtype)


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    if a.dtype in _HALF:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a, b, out=out)


def _add_mm(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype in _HALF:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a, b)


def _keep_only(logits_CV: Tensor, ids_S: Tensor, sizes_C: Tensor) -> None:
    """Logits outside the support become the lowest finite one: probability 0, and 0 times it is 0 in the entropy."""
    rows_S = _rows(sizes_C)
    kept_S = logits_CV[rows_S, ids_S]
    logits_CV.fill_(torch.finfo(logits_CV.dtype).min)
    logits_CV[rows_S, ids_S] = kept_S


def _cut(ids_S: Tensor, sizes_T: Tensor, size: int) -> list[SupportTensors]:
    """The support of every `size` tokens."""
    sizes = sizes_T.split(size)
    return list(zip(ids_S.split([int(part.sum()) for part in sizes]), sizes, strict=True))


def _select(ids_S: Tensor, sizes_T: Tensor, tokens_M: Tensor) -> SupportTensors:
    """The support of some tokens."""
    chosen_T = torch.zeros_like(sizes_T, dtype=torch.bool)
    chosen_T[tokens_M] = True
    return ids_S[chosen_T[_rows(sizes_T)]], sizes_T[tokens_M]


def _rows(sizes_T: Tensor) -> Tensor:
    """For each id of a support, the token that it belongs to, int64 [S]."""
    return torch.arange(len(sizes_T), device=sizes_T.device).repeat_interleave(sizes_T)
