"""Drop training rows that share a 10-gram with held-out text (DeepSeek-R1, arXiv:2501.12948v2, D.1).

Text becomes tokens by NFKC and case folding, then: every Han character is one token, every other run of letters and
digits is one token, the rest (punctuation, LaTeX backslashes, spaces) is dropped. A text of n tokens or more is
contaminated when it shares n consecutive tokens with a held-out text; a shorter one only when it equals a held-out
text as a whole.

What this does not catch: paraphrases and translations. What it catches although you may not want it: long phrases
that all problems of one template share, so procedural problems are kept apart by their splits, not by this.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Generic, TypeVar

from data.problems import INSTRUCTION, Problem

Row = TypeVar("Row")

_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_HAN}]|[^\W_{_HAN}]+")
_ASCII_TOKENS = str.maketrans({chr(code): chr(code).lower() if chr(code).isalnum() else " " for code in range(128)})


def tokenize(text: str) -> list[str]:
    """Words and numbers, lower-cased, and single Han characters: 'Add 3, 天空' -> ['add', '3', '天', '空']."""
    if text.isascii():  # the same, six times as fast
        return spelled(text).split()
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def spelled(text: str) -> str:
    """The tokens in one text, with one space or more between them."""
    return text.translate(_ASCII_TOKENS) if text.isascii() else " ".join(tokenize(text))


class NgramIndex:
    """The n-grams of held-out texts as 64-bit hashes, the same in every process (blake2b, not `hash()`).

    Memory is about 70 bytes per distinct held-out n-gram whatever the size of the training set. With a million n-grams
    a clean n-gram is taken for a held-out one with probability 5e-14.
    """

    def __init__(self, n: int = 10) -> None:
        if n < 1:
            raise ValueError(f"NgramIndex: n must be at least 1, got {n}")
        self.n = n
        self._hashes: set[int] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, text: str) -> None:
        self._hashes.update(_hash(ngram) for ngram in self._ngrams(text))

    def overlaps(self, text: str) -> bool:
        return self.first_overlap(text) is not None

    def first_overlap(self, text: str) -> str | None:
        """The first n-gram shared with a held-out text, tokens joined by spaces, or None."""
        return next((ngram for ngram in self._ngrams(text) if _hash(ngram) in self._hashes), None)

    def _ngrams(self, text: str) -> Iterator[str]:
        """A text shorter than n yields itself as a whole; it has fewer tokens, so it cannot equal an n-gram."""
        tokens = tokenize(text)
        if tokens:
            for start in range(max(1, len(tokens) - self.n + 1)):
                yield " ".join(tokens[start : start + self.n])


@dataclass(frozen=True, slots=True, kw_only=True)
class Decontaminated(Generic[Row]):
    kept: list[Row]
    dropped_count: int
    examples: list[str] = field(default_factory=list)  # shared n-grams of the first dropped rows, for the data card


def decontaminate(
    rows: Iterable[Row],
    held_out_texts: Iterable[str],
    key: Callable[[Row], str | Iterable[str]],
    n: int = 10,
    max_examples: int = 5,
) -> Decontaminated[Row]:
    """Keep the rows none of whose texts (`key`: one text or several) overlaps a held-out text; order is kept."""
    index = NgramIndex(n)
    for text in held_out_texts:
        index.add(text)
    kept: list[Row] = []
    dropped_count, examples = 0, []
    for row in rows:
        texts = key(row)
        overlaps = (index.first_overlap(text) for text in ([texts] if isinstance(texts, str) else texts))
        shared = next((ngram for ngram in overlaps if ngram is not None), None)
        if shared is None:
            kept.append(row)
            continue
        dropped_count += 1
        if len(examples) < max_examples:
            examples.append(shared)
    return Decontaminated(kept=kept, dropped_count=dropped_count, examples=examples)


def problem_texts(problem: Problem) -> list[str]:
    """Question, without the line that its source adds to all, and, where there is one, reference solution: R1
    decontaminates against both."""
    question = problem.question.removesuffix(problem.metadata.get(INSTRUCTION, ""))
    solution = problem.metadata.get("solution")
    return [question, *([solution] if isinstance(solution, str) and solution else [])]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
