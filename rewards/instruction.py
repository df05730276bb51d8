"""Checkable instructions: did the final answer to a general prompt do what was asked? (In the manner of IFEval.)

The ground truth is JSON, {"checks": [{"kind": "one_line"}, {"kind": "use_word", "word": "river"}, ...]}; the kinds are
the keys of KINDS in `rewards.instruction_kinds`. The verdict is PASS only when all checks pass; the value is the share
that passed, so that a group in which nobody does everything still has signal. Only the final part is read.

An answer that could satisfy checks by dumping text earns nothing: without an own limit it may have MAX_WORDS words.
"""

import json
from typing import Any

from data.problems import Problem
from rewards.instruction_kinds import KINDS, count_words
from rewards.json_schema import check_schema
from rewards.language import SCRIPTS
from rewards.repetition import units_of
from rewards.reward import Score

MAX_WORDS = 60  # for answers whose checks set no upper limit on length
PART_WORDS = 40  # a sentence, line, ... that a check asks for may have as many
PARTS = ("n_lines", "n_sentences", "min_sentences", "n_paragraphs", "n_sections")


def check_instruction(problem: Problem, text: str) -> Score:
    """PASS with 1.0 when all checks pass, else FAIL with the share that passed; ERROR for unusable checks."""
    try:
        checks = read_checks(problem.ground_truth)
    except (ValueError, RecursionError) as error:
        return Score.error(f"The checks of problem {problem.id} cannot be used: {error}.")
    final = text.strip()
    if not count_words(final):
        return Score.failed(detail="the final answer is empty")
    if problem.messages and units_of(final) == units_of(problem.question):
        return Score.failed(detail="the final answer is the question")
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
        if not all(isinstance(word, str) and word for name in ("words", "options") for word in arguments.get(name, ())):
            raise ValueError(f"check {check['kind']!r} takes a list of words, got {arguments}")
        if "schema" in arguments:
            check_schema(arguments["schema"])
        result.append((check["kind"], arguments))
    return result


def word_limit(checks: list[tuple[str, dict[str, Any]]]) -> int | None:
    """The limit against dumping, in words; None when a check already bounds the length."""
    kinds = dict(checks)
    if kinds.keys() & {"max_words", "n_words", "repeat", "one_of"}:
        return None
    asked = [PART_WORDS * kinds[kind]["n"] for kind in PARTS if kind in kinds]
    return max(MAX_WORDS, 2 * kinds.get("min_words", {"n": 0})["n"], *asked)
