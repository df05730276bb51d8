"""Packing: which sequences share a row, and which rank gets them.

DeepSeek-R1 (arXiv:2501.12948, appendix B.1) sorts the whole batch by length, deals it over the data-parallel ranks,
packs each rank's share into fixed-length chunks by Best-Fit and makes the number of chunks equal on all ranks. These
are the first two, on lengths alone; `rl.batch` and `sft` build the arrays, and Trainer.even adds empty rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of the sequences for each rank: longest first, dealt back and forth (0, 1, 2, 2, 1, 0, 0, ...).

    Dealing back and forth keeps rank 0 from getting the longer sequence of every round. The shares' sizes differ by at
    most one sequence, their token sums by at most the longest sequence. Ties go by index.
    """
    if ranks < 1:
        raise ValueError(f"deal: ranks must be at least 1, got {ranks}")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for turn, index in enumerate(_longest_first(lengths)):
        round_number, seat = divmod(turn, ranks)
        shares[ranks - 1 - seat if round_number % 2 else seat].append(index)
    return shares


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-Fit Decreasing: bins of indices whose lengths sum to at most `capacity` tokens.

    Takes sequences longest first and puts each into the fullest bin that still has room, else into a new one. Ties go
    by index, so the result depends on the arguments alone. Never uses more than 11/9 of the fewest possible bins + 4
    (Johnson 1973). A sequence longer than `capacity` gets a bin of its own: cutting it would train on something that
    nobody sampled.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in _longest_first(lengths):
        length = lengths[index]
        at = bisect_left(room, (length, -1))
        if at == len(room):
            free, bin_index = max(capacity, length), len(bins)
            bins.append([])
        else:
            free, bin_index = room.pop(at)
        bins[bin_index].append(index)
        insort(room, (free - length, bin_index))
    return bins


def fill_rate(lengths_of_rows: Sequence[Sequence[int]], capacity: int) -> float:
    """Share of a step's room that its tokens fill, from the lengths of each rank's rows: all ranks run as many rows as
    the one that has most. Above 1 where sequences are longer than a row; 0 without rows."""
    passes = len(lengths_of_rows) * max(map(len, lengths_of_rows), default=0)
    return sum(map(sum, lengths_of_rows)) / (passes * capacity) if passes else 0.0


def _longest_first(lengths: Sequence[int]) -> list[int]:
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sequence {index} has length {length}; a sequence to pack has at least one token")
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
