"""Signatures estimate similarity; what is kept has no near duplicate before it."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.decontaminate import tokenize
from distill.fingerprints import PLACES, hash_words, ngrams, signatures, similarity
from distill.near_duplicates import FOUND, band_length, near_duplicates

TEXTS = st.lists(st.sampled_from(["river", "Add", "12", "天空", "x2", "é", "...", "\n", "🙂"]), max_size=12).map(
    " ".join
)


def signed(texts: list[str], n: int = 5) -> np.ndarray:
    return signatures(*ngrams(hash_words(texts), n, whole=True), len(texts))


def jaccard(first: str, second: str, n: int = 5) -> float:
    sets = [{tuple(w[i : i + n]) for i in range(len(w) - n + 1)} for w in (tokenize(first), tokenize(second))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.lists(TEXTS, max_size=6), st.integers(1, 4))
def test_ngrams_are_equal_exactly_where_their_words_are(texts, n):
    hashes, owners = ngrams(hash_words(texts), n)
    spelled, owned = [], []
    for number, text in enumerate(texts):
        words = tokenize(text)
        spelled += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        owned += [number] * max(0, len(words) - n + 1)
    assert owners.tolist() == owned
    assert len(set(hashes.tolist())) == len(set(spelled))
    assert len({(a, b) for a, b in zip(hashes.tolist(), spelled, strict=True)}) == len(set(spelled))


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_a_signature_does_not_depend_on_what_else_is_in_the_batch(text, others):
    assert (signed([text])[0] == signed([*others, text])[-1]).all()


def test_long_batches_are_hashed_in_pieces(monkeypatch):
    texts = [f"one two {number} three" for number in range(50)]
    whole = hash_words(texts)
    monkeypatch.setattr("distill.fingerprints._PIECE", 64)
    pieces = hash_words(texts)
    assert (whole.values == pieces.values).all() and (whole.ends == pieces.ends).all()


@pytest.mark.parametrize("words", [12, 40, 400])
def test_agreement_of_signatures_estimates_the_similarity(words):
    rng = random.Random(words)
    pairs = []
    for _ in range(150):
        first = [f"w{rng.randrange(5000)}" for _ in range(words)]
        changed = set(rng.sample(range(words), rng.randint(0, max(1, words // 12))))
        pairs += [" ".join(first), " ".join("new" if i in changed else word for i, word in enumerate(first))]
    made = signed(pairs)
    errors = [
        similarity(made[i], made[i + 1 : i + 2])[0] - jaccard(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)
    ]
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06


def test_signatures_are_the_same_in_every_process():
    code = "from distill.fingerprints import *; w = hash_words(['a b c d e f', '天空']); "
    code += "print(signatures(*ngrams(w, 2, True), 2).tobytes().hex())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1 and len(runs.pop()) > 2 * PLACES


@given(st.floats(0.3, 1.0))
def test_bands_find_pairs_at_the_threshold(threshold):
    length = band_length(threshold)
    found = 1 - (1 - threshold**length) ** (PLACES // length)
    assert 1 <= length <= 8 and (found >= FOUND or length == 1)


@settings(max_examples=30)
@given(st.data())
def test_every_dropped_row_has_a_kept_one_like_it_and_no_two_kept_ones_are_equal(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    rows = rng.integers(0, 256, size=(6, PLACES), dtype=np.uint8)
    picked = data.draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=25))
    made = np.zeros((len(picked), PLACES), dtype=np.uint8)
    for place, (row, noise) in enumerate(picked):
        made[place] = rows[row]
        made[place, rng.permutation(PLACES)[:noise]] = rng.integers(0, 256, size=noise)
    firsts = near_duplicates(made, 0.8)
    kept = np.flatnonzero(firsts < 0)
    for row, first in enumerate(firsts):
        if first >= 0:
            assert first < row and firsts[first] < 0
            assert similarity(made[row], made[first : first + 1])[0] >= 0.8
    for place, row in enumerate(kept):  # identical signatures share every bucket
        assert not (made[kept[:place]] == made[row]).all(axis=1).any()
    assert not len(picked) or firsts[0] < 0


def test_near_copies_are_found_and_half_copies_are_not():
    rng = random.Random(0)
    base = [[f"w{rng.randrange(5000)}" for _ in range(150)] for _ in range(300)]
    near = [[*words[:70], "changed", *words[71:]] for words in base]
    half = [["changed" if place % 7 == 0 else word for place, word in enumerate(words)] for words in base]
    firsts = near_duplicates(signed([" ".join(words) for words in [*base, *near, *half]]), 0.8)
    assert (firsts[:300] < 0).all() and (firsts[600:] < 0).all()
    assert firsts[300:600].tolist() == list(range(300))


def test_rows_without_words_are_not_alike():
    """Nothing is known of what "∞" and "→" share."""
    empty = np.zeros((3, PLACES), dtype=np.uint8)
    assert near_duplicates(empty, 0.8).tolist() == [-1, -1, -1]
