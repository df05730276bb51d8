"""Checkable instructions: did the final answer to a general prompt do what was asked? (In the manner of IFEval.)

The ground truth is JSON, {"checks": [{"kind": "one_line"}, {"kind": "use_word", "word": "river"}, ...]}; the kinds are
the keys of KINDS. The verdict is PASS only when all checks pass; the value is the share that passed, so that a group in
which nobody does everything still has signal. Only the final part is read.

An answer that could satisfy checks by dumping text earns nothing: without an own limit it may have MAX_WORDS words.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from data.problems import Problem
from rewards.language import SCRIPTS, language_consistency
from rewards.reward import Score

MAX_WORDS = 60  # for answers whose checks set no upper limit on length
LANGUAGE_SHARE = 0.9  # of the words that a `language` check asks for

_WORDS = re.compile(r"[㐀-䶿一-鿿ぁ-ゖァ-ヺ]|[^\W_㐀-䶿一-鿿ぁ-ゖァ-ヺ]+(?:['’-][^\W_㐀-䶿一-鿿]+)*")
_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)、])\s*\S")


def count_words(text: str) -> int:
    """Words between spaces and punctuation; each Chinese or Japanese character counts as one."""
    return len(_WORDS.findall(text))


def _one_line(text: str) -> bool:
    return len(text.splitlines()) == 1


def _use_word(text: str, word: str) -> bool:
    if not word.isascii():
        return word in text
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE | re.ASCII) is not None


def _n_items(text: str, n: int) -> bool:
    return sum(_ITEM.match(line) is not None for line in text.splitlines()) == n


def _language(text: str, code: str) -> bool:
    share = language_consistency(text, code)
    return share is not None and share >= LANGUAGE_SHARE


# kind -> (names and types of its arguments, check). Checks get the stripped final part, never empty, first.
KINDS: dict[str, tuple[dict[str, type], Callable[..., bool]]] = {
    "one_line": ({}, _one_line),
    "use_word": ({"word": str}, _use_word),
    "avoid_word": ({"word": str}, lambda text, word: not _use_word(text, word)),
    "max_words": ({"n": int}, lambda text, n: count_words(text) <= n),
    "min_words": ({"n": int}, lambda text, n: count_words(text) >= n),
    "n_items": ({"n": int}, _n_items),
    "language": ({"code": str}, _language),
    "starts_with": ({"text": str}, lambda final, text: final.startswith(text)),
    "ends_with": ({"text": str}, lambda final, text: final.endswith(text)),
    "repeat": ({"text": str, "n": int}, lambda final, text, n: final.split() == text.split() * n),
    "lowercase": ({}, lambda text: text == text.lower() != text.upper()),
    "uppercase": ({}, lambda text: text == text.upper() != text.lower()),
}


def check_instruction(problem: Problem, text: str) -> Score:
    """PASS with 1.0 when all checks pass, else FAIL with the share that passed; ERROR for unusable checks."""
    try:
        checks = read_checks(problem.ground_truth)
    except ValueError as error:
        return Score.error(f"The checks of problem {problem.id} cannot be used: {error}.")
    final = text.strip()
    if not count_words(final):
        return Score.failed(detail="the final answer is empty")
    limit = word_limit(checks)
    if limit is not None and count_words(final) > limit:
        return Score.failed(detail=f"longer than {limit} words")
    failed = [kind for kind, arguments in checks if not KINDS[kind][1](final, **arguments)]
    if not failed:
        return Score.passed(detail="all checks passed")
    return Score.failed(1 - len(failed) / len(checks), f"failed: {', '.join(failed)}")


def read_checks(ground_truth: str) -> list[tuple[str, dict[str, Any]]]:
    """(kind, arguments) of each check. Raises ValueError saying what is wrong."""
    parsed = json.loads(ground_truth)
    checks = parsed.get("checks") if isinstance(parsed, dict) else None
    if not isinstance(checks, list) or not checks:
        raise ValueError('expected {"checks": [...]} with at least one check')
    result = []
    for check in checks:
        if not isinstance(check, dict) or check.get("kind") not in KINDS:
            raise ValueError(f"unknown check {check!r}")
        arguments = {name: value for name, value in check.items() if name != "kind"}
        expected = KINDS[check["kind"]][0]
        if {name: type(value) for name, value in arguments.items()} != expected or "" in arguments.values():
            raise ValueError(f"check {check['kind']!r} takes {', '.join(expected) or 'no arguments'}, got {arguments}")
        if arguments.get("code", "en") not in SCRIPTS:
            raise ValueError(f"no rule for language {arguments['code']!r}")
        result.append((check["kind"], arguments))
    return result


def word_limit(checks: list[tuple[str, dict[str, Any]]]) -> int | None:
    """The limit against dumping, in words; None when a check already bounds the length."""
    kinds = dict(checks)
    if "max_words" in kinds or "repeat" in kinds:
        return None
    return max(MAX_WORDS, 2 * kinds.get("min_words", {"n": 0})["n"])
