"""Which completions become SFT data: correct, readable, in one language (DeepSeek-R1, arXiv:2501.12948v2, B.3.2-B.3.3).

Every filter is a pure function that returns a reason, the key under which the data card counts it, or None. The paper
names the filters but not their thresholds; the defaults here are this project's choice.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import TypeVar

from pydantic import BaseModel, Field

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, Layout, ParsedCompletion, parse_completion
from data.decontaminate import tokenize
from rewards.language import SCRIPTS, language_consistency
from rewards.reward import Verdict

# Share of `text` in `language`, in [0, 1]; None where there is nothing to judge. rewards.language.language_consistency.
Consistency = Callable[[str, str], float | None]

_CODE_FENCE = re.compile(r"^\s*(```|~~~)|```", re.MULTILINE)


class FilterConfig(BaseModel, extra="forbid", frozen=True):
    layout: Layout = Field(default="summary", description="what follows the reasoning; R1's set has plain summaries")
    allow_empty_reasoning: bool = Field(
        default=False,
        description="keep an empty think block; false as reasoning data needs steps",
    )
    min_language_share: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="least share of the prompt's language; 0.9 leaves room for names",
    )
    repetition_n: int = Field(default=10, ge=1, description="words per n-gram of the repetition filter; steps recur")
    max_repetition: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="largest share of repeated n-grams; 0.3 stops loops, not checks",
    )
    max_paragraph_words: int = Field(
        default=300,
        ge=1,
        description="words or Han characters between line breaks; more is a wall of text",
    )
    max_tokens: int = Field(default=32_768, ge=1, description="tokens of the completion; R1's SFT context length")
    max_characters: int = Field(
        default=200_000, ge=1, description="characters of the completion; for rows without tokens"
    )
    max_per_problem: int | None = Field(
        default=None, ge=1, description="completions kept per problem; none: all, so easy problems weigh more"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One candidate for the SFT set."""

    problem_id: str
    question: str
    language: str  # ISO 639-1 code of the question
    completion: str
    n_tokens: int | None = None  # tokens of the completion, where known
    verdict: Verdict | None = None  # of the rule reward or judge; None: not checked (general data)
    truncated: bool = False  # stopped by the length limit


AnyTrace = TypeVar("AnyTrace", bound=Trace)


class Filters:
    """Applies every filter, first reason wins, and counts what was dropped and why in `reasons`.

    `accept` is for streams; call `limit_per_problem` on what it kept. `keep` does both.
    """

    def __init__(self, config: FilterConfig, consistency: Consistency, seed: int) -> None:
        self.config = config
        self.consistency = consistency
        self.seed = seed
        self.seen = 0  # traces judged
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self._fingerprints: set[bytes] = set()

    def keep(self, traces: Iterable[Trace]) -> list[Trace]:
        return self.limit_per_problem([trace for trace in traces if self.accept(trace)])

    def accept(self, trace: Trace) -> bool:
        """Judge one trace against the filters and everything accepted before it."""
        self.seen += 1
        reason = self.reason(trace) or self._duplicate(trace)
        if reason is not None:
            self.reasons[reason] += 1
            return False
        self.kept += 1
        return True

    def reason(self, trace: Trace) -> str | None:
        """The first filter that rejects this trace on its own, cheap ones first, or None."""
        config = self.config
        parsed = parse_completion(trace.completion)
        reasoning, final = parsed.reasoning or "", parsed.final
        if config.layout == "answer_tags":  # the tags themselves are English words
            final = parsed.answer or ""
        return (
            incorrect(trace.verdict)
            or too_long(trace.completion, trace.n_tokens, trace.truncated, config.max_tokens, config.max_characters)
            or ill_formed(trace.completion, config.layout, config.allow_empty_reasoning, parsed)
            or code_block(reasoning)
            or long_paragraph(reasoning, config.max_paragraph_words)
            or repetitive(reasoning, config.repetition_n, config.max_repetition)
            or mixed_language(reasoning, trace.language, self.consistency, config.min_language_share)
            or summary_language(final, trace.language, self.consistency, config.min_language_share)
        )

    def limit_per_problem(self, traces: Iterable[AnyTrace]) -> list[AnyTrace]:
        """Keep at most `max_per_problem` traces of each problem, chosen at random by seed; order is kept.

        Random, because the shortest (or the longest) would shift the length distribution of the set. The choice
        depends on (seed, problem, text) alone, not on the order in which samples arrived.
        """
        traces = list(traces)
        limit = self.config.max_per_problem
        if limit is None:
            return traces
        ranks: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
        for position, trace in enumerate(traces):
            rank = fingerprint(str(self.seed), trace.problem_id, trace.completion)
            ranks[trace.problem_id].append((rank, position))
        chosen = {position for ranked in ranks.values() for _, position in sorted(ranked)[:limit]}
        dropped = len(traces) - len(chosen)
        self.kept -= dropped
        if dropped:
            self.reasons["over_limit"] += dropped
        return [trace for position, trace in enumerate(traces) if position in chosen]

    def _duplicate(self, trace: Trace) -> str | None:
        digest = fingerprint(normalize(trace.question), normalize(trace.completion))
        if digest in self._fingerprints:
            return "duplicate"
        self._fingerprints.add(digest)
        return None


def incorrect(verdict: Verdict | None) -> str | None:
    """'incorrect' or, when the grader itself failed, 'unscorable'; unchecked traces pass."""
    if verdict is Verdict.ERROR:
        return "unscorable"
    return "incorrect" if verdict is Verdict.FAIL else None


def too_long(
    completion: str, n_tokens: int | None, truncated: bool, max_tokens: int, max_characters: int
) -> str | None:
    """'truncated' when sampling was cut off, 'too_long' above either limit."""
    if truncated:
        return "truncated"
    over = len(completion) > max_characters or (n_tokens is not None and n_tokens > max_tokens)
    return "too_long" if over else None


def ill_formed(
    completion: str,
    layout: Layout = "summary",
    allow_empty_reasoning: bool = False,
    parsed: ParsedCompletion | None = None,
) -> str | None:
    """One think block at the start, then a tagged answer (`answer_tags`) or text without tags (`summary`). `parsed`:
    the completion, where it is parsed already."""
    parsed = parsed or parse_completion(completion)
    if parsed.reasoning is None or not parsed.final or not (parsed.reasoning or allow_empty_reasoning):
        return "ill_formed"
    has_tags = ANSWER_OPEN in completion or ANSWER_CLOSE in completion
    fits = not has_tags if layout == "summary" else bool(parsed.answer)
    return None if fits else "ill_formed"


def code_block(reasoning: str) -> str | None:
    """Fenced code in the reasoning; inline `code` is fine."""
    fenced = any(fence in reasoning for fence in ("```", "~~~")) and _CODE_FENCE.search(reasoning)
    return "code_block" if fenced else None


def long_paragraph(reasoning: str, max_words: int = 300) -> str | None:
    """A paragraph is what stands between two line breaks; words are Latin words, numbers and single Han characters."""
    ascii_ = reasoning.isascii()  # then two words are at least a character apart
    if ascii_ and len(reasoning) <= 2 * max_words:
        return None
    lines = [line for line in reasoning.splitlines() if not ascii_ or len(line) > 2 * max_words]
    longest = max((len(tokenize(line)) for line in lines), default=0)
    return "long_paragraph" if longest > max_words else None


def repetitive(text: str, n: int = 10, max_repetition: float = 0.3) -> str | None:
    tokens = tokenize(text)
    starts = max(0, len(tokens) - n + 1)
    if n > 1 and starts:  # n-grams that begin with different pairs are different: mostly enough to see that few repeat
        pairs = len(set(pairwise(tokens[: starts + 1])))
        if 1 - pairs / starts <= max_repetition:
            return None
    return "repetitive" if _repetition(tokens, n) > max_repetition else None


def repetition(text: str, n: int = 10) -> float:
    """Share of n-grams that occurred before in the text, in [0, 1]; 0 for texts of up to n words.

    N-grams rather than a zlib ratio: compression depends on length and script (three bytes a Han character), so one
    threshold could not serve short and long, en and zh.
    """
    return _repetition(tokenize(text), n)


def _repetition(tokens: list[str], n: int) -> float:
    total = len(tokens) - n + 1
    if total < 2:
        return 0.0
    return 1 - len({tuple(tokens[start : start + n]) for start in range(total)}) / total


def mixed_language(text: str, language: str, consistency: Consistency, min_share: float = 0.9) -> str | None:
    """Too little of the reasoning is in the prompt's language; text without words passes."""
    share = consistency(text, language)
    return "mixed_language" if share is not None and share < min_share else None


def summary_language(final: str, language: str, consistency: Consistency, min_share: float = 0.9) -> str | None:
    """The summary is not in the prompt's language; a bare formula passes."""
    return "summary_language" if mixed_language(final, language, consistency, min_share) else None


def script_consistency(text: str, language: str) -> float | None:
    """Languages without a script of their own here cannot be told apart, so they pass."""
    return language_consistency(text, language) if language in SCRIPTS else None


def normalize(text: str) -> str:
    """For exact deduplication: NFKC, case folded, white space collapsed. Signs stay: 3 + 5 is not 3 - 5."""
    same = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(same.split())


def fingerprint(*parts: str, size: int = 16) -> bytes:
    """A hash of the texts, `size` bytes, the same in every process."""
    joined = "\x00".join(parts).encode("utf-8", "surrogatepass")
    return blake2b(joined, digest_size=size).digest()
