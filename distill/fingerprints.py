"""Hashes of words and word n-grams, and MinHash signatures: the same in every process and on every machine.

A signature says how much two sets of shingles have in common (Broder 1997): two rows agree in a place of it with the
probability of their Jaccard similarity, |A and B| / |A or B|. Here by one permutation hashing (Li, Owen and Zhang,
arXiv:1208.1259): one hash per shingle, whose first bits choose the place and of which each place keeps the least.
Places that no shingle fell into copy another one, the same for every row (optimal densification: Shrivastava,
arXiv:1703.04664). A place keeps eight bits of its hash (b-bit minwise hashing: Li and König, arXiv:0910.3349).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.decontaminate import spelled

PLACES = 128  # of a signature; the estimate's standard error at similarity 0.8 is 0.035, more for short texts
_PLACE_BITS, _VALUE_BITS, _KEPT = 7, 41, 0xFF
MOST_ROWS = 1 << (64 - _PLACE_BITS - _VALUE_BITS)  # whose signatures are made at once
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_PIECE = 1 << 19  # characters hashed at once; a longer text makes a longer piece
_ATTEMPTS = 4096  # to find a place to copy; one place that is taken among 128 is then missed with probability 1e-14


# _COPIED[attempt, place]: where an empty place looks.
_COPIED = np.random.default_rng(0).integers(PLACES, size=(_ATTEMPTS, PLACES), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of several texts, one after the other. Text i has values[starts[i]:ends[i]]."""

    values: np.ndarray  # [W] uint64, a hash of each word
    starts: np.ndarray  # [T] int64
    ends: np.ndarray  # [T] int64


def hash_words(texts: Sequence[str]) -> Words:
    """The words (`data.decontaminate.tokenize`) of each text."""
    values, counts, piece, size = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], [], 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= _PIECE:
            _append(piece, values, counts)
            piece, size = [], 0
    _append(piece, values, counts)
    ends = np.cumsum(np.concatenate(counts))
    return Words(np.concatenate(values), ends - np.concatenate(counts), ends)


def _append(texts: Sequence[str], values: list[np.ndarray], counts: list[np.ndarray]) -> None:
    """Hash all words of the texts together: each is a polynomial in its bytes, the difference of two running sums."""
    written = "\n".join(["", *map(spelled, texts), ""]).encode("utf-8", "surrogatepass")
    bytes_ = np.frombuffer(written, dtype=np.uint8)
    powers, inverses = _powers(len(bytes_))
    inside = bytes_ > ord(" ")
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    sums = np.cumsum(bytes_ * powers)
    values.append(mixed((sums[ends - 1] - sums[starts - 1]) * inverses[starts]))
    counts.append(np.diff(np.searchsorted(starts, np.flatnonzero(bytes_ == ord("\n")))) if texts else counts[0])


@lru_cache(maxsize=1)
def _power_table(length: int) -> tuple[np.ndarray, np.ndarray]:
    """_FACTOR ** i and its inverse modulo 2^64, for i < length."""
    tables = []
    for base in (int(_FACTOR), pow(int(_FACTOR), -1, 1 << 64)):
        steps = np.full(length, base, dtype=np.uint64)
        steps[0] = 1
        tables.append(np.cumprod(steps))
    return tables[0], tables[1]


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    powers, inverses = _power_table(1 << max(length, _PIECE).bit_length())
    return powers[:length], inverses[:length]


def ngrams(words: Words, n: int, whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(hashes [N] uint64, text of each [N] int64, ascending) of every n words in a row within a text.

    whole: texts of fewer words, but at least one, count as one n-gram.
    """
    lengths = words.ends - words.starts
    counts = np.maximum(lengths - n + 1, 0)
    owners = np.repeat(np.arange(len(lengths)), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    rolled = _rolled(words.values, n)
    hashes = mixed(rolled[np.repeat(words.starts, counts) + within])
    short = np.flatnonzero((lengths < n) & (lengths > 0)) if whole else ()
    if len(short):
        values = (words.values[words.starts[text] : words.ends[text]] for text in short)
        sums = np.array([_rolled(value, len(value))[0] for value in values], dtype=np.uint64)
        hashes, owners = np.concatenate([hashes, mixed(sums)]), np.concatenate([owners, short])
        order = np.argsort(owners, kind="stable")
        hashes, owners = hashes[order], owners[order]
    return hashes, owners


def signatures(hashes: np.ndarray, owners: np.ndarray, rows: int) -> np.ndarray:
    """Signatures [rows, PLACES] uint8 of the shingles `hashes` [N] uint64 of rows `owners` [N]; rows without any are 0.

    Raises ValueError for more than MOST_ROWS rows.
    """
    if rows > MOST_ROWS:
        raise ValueError(f"signatures: at most {MOST_ROWS} rows at once, got {rows}")
    made = np.zeros((rows, PLACES), dtype=np.uint8)
    kept_bits = np.uint64(_PLACE_BITS + _VALUE_BITS)
    keys = np.sort((owners.astype(np.uint64) << kept_bits) | (hashes >> np.uint64(64 - _PLACE_BITS - _VALUE_BITS)))
    slots = (keys >> np.uint64(_VALUE_BITS)).astype(np.int64)  # row * PLACES + place
    least = np.flatnonzero(np.diff(slots, prepend=-1))
    made.reshape(-1)[slots[least]] = (keys[least] & np.uint64(_KEPT)).astype(np.uint8)
    taken = np.zeros(rows * PLACES, dtype=bool)
    taken[slots[least]] = True
    _densify(made, taken)
    return made


def similarity(signature: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity [K] float64 of one signature [PLACES] and others [K, PLACES].

    Eight bits agree by chance in one of 256 places, which is taken off (Li and König, theorem 1, for sparse sets).
    """
    agreed = (others == signature).mean(axis=1)
    return (agreed - 1 / 256) / (1 - 1 / 256)


def _densify(made: np.ndarray, taken: np.ndarray) -> None:
    flat = made.reshape(-1)
    some = np.repeat(taken.reshape(made.shape).any(axis=1), PLACES)
    empty = np.flatnonzero(~taken & some)
    for copied in _COPIED:
        if not len(empty):
            return
        places = empty % PLACES
        sources = empty - places + copied[places]
        found = taken[sources]
        flat[empty[found]] = flat[sources[found]]
        empty = empty[~found]


def _rolled(values: np.ndarray, n: int) -> np.ndarray:
    """A polynomial in every n values in a row, modulo 2^64; empty where there are fewer."""
    count = max(0, len(values) - n + 1)
    total = values[:count].copy()
    for place in range(1, n):
        total *= _FACTOR
        total += values[place : place + count]
    return total


def mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (MurmurHash3's finaliser, Appleby)."""
    values = values ^ (values >> np.uint64(33))
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values *= np.uint64(factor)
        values ^= values >> np.uint64(33)
    return values
