"""Sums over the tokens of each sequence. Axes: T tokens of a micro-batch in any order, N its sequences.

`sequence_of_token_T` is int64 in [0, N). Results have the dtype of the values; gradients flow through.
"""

import torch
from torch import Tensor


def sequence_lengths(sequence_of_token_T: Tensor, sequences: int) -> Tensor:
    """Tokens of each sequence, int64 [N]."""
    lengths_N = sequence_of_token_T.new_zeros(sequences)
    return lengths_N.index_add(0, sequence_of_token_T, torch.ones_like(sequence_of_token_T))


def sequence_total(values_T: Tensor, sequence_of_token_T: Tensor, sequences: int) -> Tensor:
    """Sum of each sequence's values, [N]."""
    return values_T.new_zeros(sequences).index_add(0, sequence_of_token_T, values_T)


def sequence_mean(values_T: Tensor, sequence_of_token_T: Tensor, sequences: int) -> Tensor:
    """Mean of each sequence's values, [N]; NaN for a sequence without tokens."""
    total_N = sequence_total(values_T, sequence_of_token_T, sequences)
    return total_N / sequence_lengths(sequence_of_token_T, sequences)
