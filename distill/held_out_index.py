"""Held-out text in many rows at once: exactly what `data.decontaminate.NgramIndex` finds, several times as fast.

All n-grams of a batch are hashed together; only texts with a hash that a held-out text has too are looked at closely.
"""

import numpy as np

from data.decontaminate import NgramIndex
from distill.fingerprints import Words, hash_words, ngrams
from sft.held_out import NGRAM, HeldOut

_SLOTS_PER_HASH = 16  # bytes; a clean n-gram is looked up in the list of hashes with probability 1/16


class HeldOutIndex:
    """Memory: about 100 bytes per distinct held-out n-gram."""

    def __init__(self, held_out: HeldOut) -> None:
        self.questions = held_out.questions
        self._exact = NgramIndex(NGRAM)
        for text in held_out.texts:
            self._exact.add(text)
        hashes, _ = ngrams(hash_words(held_out.texts), NGRAM)
        self._hashes = np.unique(hashes)
        bits = max(10, (_SLOTS_PER_HASH * len(self._hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._present = np.zeros(1 << bits, dtype=bool)
        self._present[self._hashes >> self._shift] = True

    def overlaps(self, texts: list[str], words: Words) -> dict[int, str]:
        """Number of each text that shares n words in a row with a held-out one -> those words. `words`: of the texts.

        Texts of fewer than n words are compared as a whole.
        """
        hashes, owners = ngrams(words, NGRAM)
        likely = self._present[hashes >> self._shift]
        hashes, owners = hashes[likely], owners[likely]
        found = owners[self._hashes[np.searchsorted(self._hashes[:-1], hashes)] == hashes] if len(hashes) else owners
        lengths = words.ends - words.starts
        closely = np.union1d(found, np.flatnonzero((lengths > 0) & (lengths < NGRAM)))
        shared = {int(text): self._exact.first_overlap(texts[text]) for text in closely}
        return {text: ngram for text, ngram in shared.items() if ngram is not None}
