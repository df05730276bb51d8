"""Rows that are nearly the same as one kept before them: MinHash signatures in buckets (LSH, Indyk and Motwani 1998).

A signature is cut into bands. Rows that agree in a whole band share a bucket, and only rows that share one are
compared, by their signatures. Bands are as long as still find 99 % of the pairs at the threshold, so longer bands,
and fewer comparisons, go with a higher threshold.
"""

from collections import defaultdict

import numpy as np

from distill.fingerprints import PLACES, similarity

FOUND = 0.99  # of the pairs whose similarity is the threshold
_REMEMBERED = 32  # kept rows of a bucket that others are compared with: bounds the time where rows share a template


def band_length(threshold: float) -> int:
    """Places of a band, at least 1 and at most 8: P(pair shares a bucket) = 1 - (1 - s^r)^(PLACES // r)."""
    found = [r for r in range(1, 9) if 1 - (1 - threshold**r) ** (PLACES // r) >= FOUND]
    return max(found, default=1)


def near_duplicates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each signature [N, PLACES] uint8: the first row kept that is as similar as `threshold`, or -1, [N] int64.

    A row that has none is kept. Memory beside the signatures: about 10 bytes per row and band that shares a bucket.
    """
    firsts = np.full(len(signatures), -1, dtype=np.int64)
    if not len(signatures):
        return firsts
    rows, buckets = _shared_buckets(signatures, band_length(threshold))
    kept: dict[int, list[int]] = defaultdict(list)  # bucket -> rows
    bounds = np.flatnonzero(np.diff(rows, prepend=-1, append=-1))
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        row, own = int(rows[start]), buckets[start:end].tolist()
        if not signatures[row].any():
            continue  # a row without words: nothing is known of what it shares with others
        candidates = sorted({other for bucket in own for other in kept[bucket]})
        if candidates:
            alike = similarity(signatures[row], signatures[candidates]) >= threshold
            if alike.any():
                firsts[row] = candidates[int(alike.argmax())]
                continue
        for bucket in own:
            if len(kept[bucket]) < _REMEMBERED:
                kept[bucket].append(row)
    return firsts


def _shared_buckets(signatures: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows [M] int32, ascending, their buckets [M] int32) of the buckets that have at least two rows."""
    rows, buckets, used = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], 0
    for start in range(0, PLACES - length + 1, length):
        band = np.zeros((len(signatures), 8), dtype=np.uint8)
        band[:, :length] = signatures[:, start : start + length]
        keys = band.view(np.uint64).reshape(-1)
        order = np.argsort(keys, kind="stable")
        same = np.diff(keys[order]) == 0  # as the one before
        shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
        begins = shared & ~np.concatenate([[False], same])
        rows.append(order[shared].astype(np.int32))
        buckets.append((used + np.cumsum(begins)[shared]).astype(np.int32))
        used += int(begins.sum())
    placed, bucket = np.concatenate(rows), np.concatenate(buckets)
    order = np.argsort(placed, kind="stable")
    return placed[order], bucket[order]
