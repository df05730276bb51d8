"""From the completions of a rollout batch to mini-batches, and from those to packed micro-batches.

A packed row holds whole sequences (prompt + completion) one after the other. `position_ids` and `cu_seqlens` say where
each begins; keeping attention inside them is the model code's part. Plain numpy, so that rows travel between processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.packing import best_fit
from rollouts.records import Support


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSequence:
    """One completion to train on, with its prompt. Add old and ref logprobs later by `dataclasses.replace`."""

    prompt_ids: np.ndarray  # [P] int, at least one token
    completion_ids: np.ndarray  # [C] int, at least one token
    advantage: float
    sampling_logprobs: np.ndarray | None = None  # [C] float32
    old_logprobs: np.ndarray | None = None  # [C] float32
    ref_logprobs: np.ndarray | None = None  # [C] float32
    routed_experts: np.ndarray | None = None  # [P + C - 1, L, K] uint8 or uint16: of every token but the last
    support: Support | None = None  # the tokens that each completion token was drawn from; None: all
    group: int = 0  # where it comes from: place of its group in the rollout batch, and of itself in the group
    sample: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "completion_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"TrainingSequence: {name} is empty; the first completion token needs one before it")
        for name in ("sampling_logprobs", "old_logprobs", "ref_logprobs"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.completion_ids):
                raise ValueError(
                    f"TrainingSequence: {name} has {len(values)} values for {len(self.completion_ids)} tokens"
                )
        if self.routed_experts is not None and len(self.routed_experts) != len(self) - 1:
            raise ValueError(
                f"TrainingSequence: routed_experts has {len(self.routed_experts)} tokens; a sequence of {len(self)} "
                f"needs {len(self) - 1}, all but the last"
            )
        if self.support is not None:
            sets, ids = len(self.support.sizes), len(self.support.ids)
            if sets != len(self.completion_ids) or ids != self.support.sizes.sum():
                raise ValueError(
                    f"TrainingSequence: support has {sets} sets for {len(self.completion_ids)} tokens, and {ids} ids "
                    f"where its sizes say {self.support.sizes.sum()}"
                )

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class MissingRoutes(ValueError):
    """Routing replay needs the generator's experts, and completions came without them."""


class NonFiniteLoss(FloatingPointError):
    """The loss or a gradient of a mini-batch was not finite. The weights are as they were before the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """One packed row: T tokens in S sequences, C of the tokens being completion tokens.

    Example, prompts [7] and [8, 9], completions [1, 2] and [3]:
        input_ids = [7, 1, 2, 8, 9, 3]         position_ids = [0, 1, 2, 0, 1, 2]      cu_seqlens = [0, 3, 6]
        predicting_positions = [0, 1, 4]       target_ids = [1, 2, 3]                 sequence_of_token = [0, 0, 1]
    """

    input_ids: np.ndarray  # [T] int64
    position_ids: np.ndarray  # [T] int64, from 0 in every sequence
    cu_seqlens: np.ndarray  # [S + 1] int32, where sequences begin, and T
    predicting_positions: np.ndarray  # [C] int64: logits at predicting_positions[j] predict completion token j
    target_ids: np.ndarray  # [C] int64: completion token j
    sequence_of_token: np.ndarray  # [C] int64 in [0, S)
    sequence_indices: np.ndarray  # [S] int64: place of each sequence in the list that was packed
    advantages: np.ndarray  # [S] float32
    sampling_logprobs: np.ndarray | None  # [C] float32; None when the sequences have none
    old_logprobs: np.ndarray | None  # [C] float32, likewise
    ref_logprobs: np.ndarray | None  # [C] float32, likewise
    routed_experts: np.ndarray | None  # [T, L, K] int16, -1 for the last token of a sequence; None likewise
    support_ids: np.ndarray | None  # [sum(support_sizes)] int64, likewise: the sets of tokens drawn from, joined
    support_sizes: np.ndarray | None  # [C] int64, likewise

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Values per completion token, [C], cut by sequence, in the order of `sequence_indices`."""
        if len(values) != len(self.target_ids):
            raise ValueError(f"MicroBatch.split: {len(values)} values for {len(self.target_ids)} completion tokens")
        sequences = len(self.sequence_indices)
        starts = np.searchsorted(self.sequence_of_token, np.arange(1, sequences))
        return np.split(values, starts) if sequences else []

    def split_routes(self, experts: np.ndarray) -> list[np.ndarray]:
        """Experts of every token, [T, L, K], cut by sequence and without each one's last token."""
        return [experts[start : end - 1] for start, end in pairwise(self.cu_seqlens)]


def make_mini_batches(sequences: Sequence[TrainingSequence], count: int, seed: int) -> list[list[TrainingSequence]]:
    """Split a rollout batch at random into `count` mini-batches whose sizes differ by at most one.

    DeepSeek-R1, section 2.1: 8,192 outputs, randomly split into 16. Groups are torn apart, so advantages come first.
    With fewer sequences than `count` there are fewer mini-batches, never an empty one.
    """
    if count < 1:
        raise ValueError(f"make_mini_batches: count must be at least 1, got {count}")
    order = np.random.default_rng(seed).permutation(len(sequences))
    return [[sequences[i] for i in part] for part in np.array_split(order, count) if len(part)]


def pack(sequences: Sequence[TrainingSequence], capacity: int) -> list[MicroBatch]:
    """Pack sequences into rows of at most `capacity` tokens; a longer sequence is a row of its own."""
    return [_build_row(sequences, members) for members in best_fit([len(s) for s in sequences], capacity)]


def _build_row(sequences: Sequence[TrainingSequence], members: list[int]) -> MicroBatch:
    chosen = [sequences[i] for i in members]
    supports = [s.support for s in chosen]
    lengths = np.array([len(sequence) for sequence in chosen], dtype=np.int64)
    ends = np.cumsum(lengths)
    completion_lengths = [len(sequence.completion_ids) for sequence in chosen]
    return MicroBatch(
        input_ids=_join([part for s in chosen for part in (s.prompt_ids, s.completion_ids)], np.int64),
        position_ids=_join([np.arange(length) for length in lengths], np.int64),
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        # A completion is the end of its sequence; each token is predicted one position earlier.
        predicting_positions=_join(
            [np.arange(e - c, e) - 1 for e, c in zip(ends, completion_lengths, strict=True)], np.int64
        ),
        target_ids=_join([s.completion_ids for s in chosen], np.int64),
        sequence_of_token=np.repeat(np.arange(len(chosen), dtype=np.int64), completion_lengths),
        sequence_indices=np.array(members, dtype=np.int64),
        advantages=np.array([s.advantage for s in chosen], dtype=np.float32),
        sampling_logprobs=_join_logprobs([s.sampling_logprobs for s in chosen], "sampling_logprobs"),
        old_logprobs=_join_logprobs([s.old_logprobs for s in chosen], "old_logprobs"),
        ref_logprobs=_join_logprobs([s.ref_logprobs for s in chosen], "ref_logprobs"),
        routed_experts=_join_routes(chosen),
        support_ids=_join_given([s and s.ids for s in supports], "support", np.int64),
        support_sizes=_join_given([s and s.sizes for s in supports], "support", np.int64),
    )


def empty_row() -> MicroBatch:
    return _build_row([], [])


def _join(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _join_logprobs(parts: list[np.ndarray | None], name: str) -> np.ndarray | None:
    return _join_given(parts, name, np.float32)


def _join_given(parts: list[np.ndarray | None], name: str, dtype: type) -> np.ndarray | None:
    present = _all_or_none(parts, name)
    return _join(present, dtype) if present or not parts else None


def _join_routes(chosen: Sequence[TrainingSequence]) -> np.ndarray | None:
    """int16, -1 for every token of a sequence without experts, and for each last token, whose state nothing reads."""
    shapes = {s.routed_experts.shape[1:] for s in chosen if s.routed_experts is not None}
    if not shapes:
        return None
    [shape] = shapes
    experts = np.full((sum(map(len, chosen)), *shape), -1, dtype=np.int16)
    start = 0
    for sequence in chosen:
        if sequence.routed_experts is not None:
            experts[start : start + len(sequence) - 1] = sequence.routed_experts
        start += len(sequence)
    return experts


def _all_or_none(parts: list[np.ndarray | None], name: str) -> list[np.ndarray]:
    present = [part for part in parts if part is not None]
    if present and len(present) < len(parts):
        raise ValueError(f"pack: {len(parts) - len(present)} of {len(parts)} sequences of a row lack {name}")
    return present
