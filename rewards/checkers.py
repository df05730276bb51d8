"""Graders that need no algebra, by `Problem.checker`: list, choice, options, key_value, countdown, instruction, ifeval.

Each takes (problem, text) and returns a Score: `text` is the extracted final answer, or for those of WHOLE_ANSWER the
whole final part. A ground truth that cannot be read is an error; an answer that cannot be read is a fail.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from data.config import JUDGING
from data.problems import UNCHECKED, Problem
from rewards.countdown import ExpressionError, evaluate
from rewards.exact import parse_number, widen
from rewards.ifeval import check_ifeval
from rewards.instruction import check_instruction
from rewards.math_text import read_chosen
from rewards.reward import Score

Checker = Callable[[Problem, str], Score]

MAX_LIST_CHARS = 2000

_LIST_SYMBOLS = {"\\lt": "<", "\\gt": ">", "\\{": "[", "\\}": "]", "、": ",", "\\left": "", "\\right": "", "$": ""}
_CHOICES = {
    "true": ("true", "yes", "真", "是", "对", "正确", "是的"),
    "false": ("false", "no", "假", "否", "错", "错误", "不是", "不对"),
}
_POLARITY = {word: polarity for polarity, words in _CHOICES.items() for word in words}
_PAIR_SEPARATOR = re.compile(r"\s*[,;、\n]\s*(?:and\s+)?|\s+and\s+")
_KEY_SEPARATOR = re.compile(r"\s*(?::|=|->|→|\bis\b|是)\s*")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}")


def check_list(problem: Problem, text: str) -> Score:
    """An ordered list of numbers: `[3, 5]`, `3, 5`, `3，5`, `3、5`, or `3 < 5` where it is true."""
    gold = _read_gold_list(problem.ground_truth)
    if gold is None:
        return Score.error(f"The ground truth of problem {problem.id} is not a list of numbers.")
    answer = read_list(text)
    if answer is None:
        return Score.failed(detail=f"not a list of numbers: {text[:80]!r}")
    return Score.passed(detail="same list") if answer == gold else Score.failed(detail=f"other list: {text[:80]!r}")


def check_choice(problem: Problem, text: str) -> Score:
    """One word of true/false, yes/no, 真/假, 是/否, 对/错 (by meaning), or one letter A to H, as `read_chosen`."""
    gold = read_choice(problem.ground_truth)
    if gold is None:
        return Score.error(f"The ground truth of problem {problem.id} is not one choice.")
    answer = read_choice(text)
    if answer is None:
        return Score.failed(detail=f"not one choice: {text[:80]!r}")
    return Score.passed(detail="same choice") if answer == gold else Score.failed(detail=f"other choice: {answer}")


def check_countdown(problem: Problem, text: str) -> Score:
    """An expression that reaches the target and uses each given number at most once, and no other number."""
    try:
        truth = json.loads(problem.ground_truth)
        available = Counter(_whole(number) for number in truth["numbers"])
        target = _whole(truth["target"])
    except (ValueError, TypeError, KeyError):
        return Score.error(f'The ground truth of problem {problem.id} is not {{"numbers": [...], "target": n}}.')
    expression, equals, right = widen(text).partition("=")
    if equals and parse_number(right.strip(" .$")) != target:
        return Score.failed(detail=f"The right-hand side is not {target}.")
    try:
        value, used = evaluate(expression)
    except ExpressionError as error:
        return Score.failed(detail=str(error))
    if foreign := Counter(used) - available:
        return Score.failed(detail=f"not given, or given less often: {', '.join(map(str, sorted(foreign)))}")
    if value != target:
        return Score.failed(detail=f"gives {value}, not {target}")
    return Score.passed(detail="reaches the target")


def check_options(problem: Problem, text: str) -> Score:
    """Several letters of a multiple choice, in any order: `A, C`, `AC`, `A and C`. All of them and no other."""
    gold = read_options(problem.ground_truth)
    if not gold:
        return Score.error(f"The ground truth of problem {problem.id} is not a set of options.")
    answer = read_options(text)
    if answer is None:
        return Score.failed(detail=f"not a set of options: {text[:80]!r}")
    return (
        Score.passed(detail="same options") if answer == gold else Score.failed(detail=f"other options: {text[:80]!r}")
    )


def check_key_value(problem: Problem, text: str) -> Score:
    """A value for every key, e.g. who is a knight: `Ann: knight, Bob: knave`, JSON, `Ann is a knight and Bob is ...`.

    The ground truth is a JSON object of texts. Each key must have one value; values compare without case and articles.
    """
    try:
        truth = json.loads(problem.ground_truth)
        gold = {_plain(key): _plain(str(value)) for key, value in truth.items()}
    except (ValueError, AttributeError):
        gold = {}
    if not gold or "" in gold or "" in gold.values():
        return Score.error(f"The ground truth of problem {problem.id} is not a JSON object of keys and values.")
    answer = read_key_values(text)
    if answer is None:
        return Score.failed(detail=f"not one value for each key: {text[:80]!r}")
    if wrong := [key for key, value in gold.items() if answer.get(key) != value]:
        return Score.failed(detail=f"wrong or missing: {', '.join(wrong)}")
    if foreign := answer.keys() - gold.keys():
        return Score.failed(detail=f"not asked for: {', '.join(sorted(foreign))}")
    return Score.passed(detail="same values")


CHECKERS: dict[str, Checker] = {
    "list": check_list,
    "choice": check_choice,
    "options": check_options,
    "key_value": check_key_value,
    "countdown": check_countdown,
    "instruction": check_instruction,
    "ifeval": check_ifeval,
}
KNOWN_CHECKERS = ("math", *CHECKERS, "code", JUDGING, UNCHECKED)  # with those that other modules grade
WHOLE_ANSWER = frozenset({"instruction", "ifeval"})  # checkers of all that is said, not of one answer in it


def _read_gold_list(text: str) -> list[Fraction] | None:
    try:
        items = json.loads(text)
    except ValueError:
        return read_list(text)
    if isinstance(items, list):
        numbers = [None if isinstance(item, bool) else parse_number(str(item)) for item in items]
        return [number for number in numbers if number is not None] if None not in numbers else None
    return read_list(text)


def read_list(text: str) -> list[Fraction] | None:
    """Numbers between commas, or between `<` or `>` when the chain holds; None when it is neither."""
    if len(text) > MAX_LIST_CHARS:
        return None
    for symbol, plain in _LIST_SYMBOLS.items():
        text = text.replace(symbol, plain)
    text = widen(text).strip().rstrip(".。").strip()
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        text = text[1:-1].strip()
    if not text:
        return []
    separators = set(re.findall(r"[,<>]", text))
    if len(separators) > 1:
        return None
    numbers = [parse_number(item.strip().strip("'\"")) for item in re.split(r"[,<>]", text)]
    if None in numbers:
        return None
    values = [number for number in numbers if number is not None]
    if separators & {"<", ">"} and values != sorted(values, reverse=">" in separators):
        return None
    return values


def read_choice(text: str) -> str | None:
    text = widen(text.strip().strip("$*").strip())
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1]
    text = text.strip().rstrip(".。!").strip()
    polarity = _POLARITY.get(text.lower())
    chosen = None if polarity else read_chosen(text)
    return chosen if chosen and chosen <= "H" else polarity


def read_options(text: str) -> frozenset[str] | None:
    """The letters A to H of a text that holds nothing else but commas, spaces, brackets and "and"; None otherwise."""
    text = _WRAPPED.sub(r"\1", widen(text.strip().strip("$*").strip()).rstrip(".。"))
    pieces = [piece for piece in re.split(r"[\s,;、/()和]+", text[:MAX_LIST_CHARS]) if piece and piece != "and"]
    if not pieces or not all(re.fullmatch(r"[A-Ha-h]|[A-H]+", piece) for piece in pieces):
        return None
    letters = "".join(pieces).upper()
    return frozenset(letters) if len(set(letters)) == len(letters) else None


def read_key_values(text: str) -> dict[str, str] | None:
    """Keys and values of `a: b, c: d` (or `=`, `is`, `是`, `->`; separated by commas, semicolons, lines, "and")."""
    if len(text) > MAX_LIST_CHARS:
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        pairs = [(str(key), str(value)) for key, value in parsed.items()]
        if text.count(":") > len(pairs):  # a key given twice, of which JSON keeps the last
            return None
    else:
        pieces = [piece for piece in _PAIR_SEPARATOR.split(_WRAPPED.sub(r"\1", widen(text)).strip(" .。{}")) if piece]
        pairs = [tuple(_KEY_SEPARATOR.split(piece, maxsplit=1)) for piece in pieces]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        return None
    values = {_plain(key): _plain(value) for key, value in pairs}
    return values if len(values) == len(pairs) and "" not in values and "" not in values.values() else None


def _plain(text: str) -> str:
    return re.sub(r"^(?:an?|the|一个|一名)\s*(?=\S)", "", text.strip(" \t\n\"'*-.。").lower()).strip()


def _whole(number: Any) -> int:
    if isinstance(number, bool) or int(number) != number:
        raise ValueError(f"not a whole number: {number!r}")
    return int(number)
