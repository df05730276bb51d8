"""Mathematical answers: find the one a completion commits to, decide whether it equals the gold answer.

Only the final part is read (never the reasoning), and there only `\\boxed{...}` and `<answer>...</answer>`. An answer
of several values is right where the gold answer has the same several values. Equality is decided here where both sides
are numbers, words or the same text, otherwise by `rewards.grader_process`; `docs/rewards.md` has the rules.
"""

import re
from dataclasses import dataclass

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, parse_completion
from rewards.grader_process import GraderPool
from rewards.math_shape import same_answer
from rewards.math_text import (
    MAX_ANSWER_CHARS,
    is_choice,
    mixes_digits,
    normalise,
    read_chosen,
    read_number_word,
    read_words,
)
from rewards.reward import Score

_BOX_OR_BRACE = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s+(?P<bare>-?[0-9A-Za-z][0-9A-Za-z,./]*[0-9A-Za-z]|-?[0-9A-Za-z])(?![\\{^_]))|\\.|[{}]",
    re.DOTALL,
)
_JOINED = re.compile(
    r"(?:[\s$,;&/|.~]|\\[,;:! \\()\[\]]|\\q?quad|or|and|或者?|和|与|\\(?:text|mbox|textbf)\s*\{|\}|[xyzn]\s*=|=)*",
    re.IGNORECASE,
)
_SIGN_BEFORE = re.compile(r"(?:(?:^|[\s$=(])-|\\(?:pm|mp|sqrt|cdot|times)\s*\{?\s*)$")
_POWER_AFTER = re.compile(r"\s*(?:\^(?!\s*\{?\s*\\circ)|\\(?:cdot|times)(?![a-z]))")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalAnswer:
    """`text` is what the completion commits to, or None, and then `problem` says why."""

    text: str | None
    problem: str = ""


def extract_answer(completion: str) -> FinalAnswer:
    """The answer in the final part of a completion: its last box, or the answer tag (whose last box, if any, counts).

    Boxes with nothing but "and", "or" or punctuation between them are one answer that lists several values. A box
    that contradicts the answer tag, or one that is never closed, leaves no answer.
    """
    parsed = parse_completion(completion)
    tagged = parsed.answer is not None
    if not tagged and (ANSWER_OPEN in parsed.final or ANSWER_CLOSE in parsed.final):
        return FinalAnswer(text=None, problem="answer tags are not exactly one pair")
    boxes, unclosed = _locate_boxes(parsed.final)
    if unclosed:
        return FinalAnswer(text=None, problem="a box is never closed")
    if boxes and _is_operand(parsed.final, boxes[-1]):
        return FinalAnswer(text=None, problem="the box is only a part of a formula")
    candidates = [_last_answer(parsed.final, boxes)] if boxes else []
    if parsed.answer is not None:
        inside, _ = _locate_boxes(parsed.answer)
        candidates.append(_last_answer(parsed.answer, inside) if inside else parsed.answer)
    if not candidates:
        return FinalAnswer(text=None, problem="no final answer")
    if len({normalise(text) for text in candidates}) > 1:
        return FinalAnswer(text=None, problem="several different final answers")
    answer = candidates[-1].strip()
    return FinalAnswer(text=answer) if answer else FinalAnswer(text=None, problem="the final answer is empty")


def find_boxes(text: str) -> tuple[list[str], bool]:
    """Contents of the `\\boxed{...}` in order, and whether one is left open. Linear in the text.

    Of boxes inside boxes the innermost count. Escaped braces (`\\{`) are text. `\\fbox` is a box, and so is the word
    after a `\\boxed` without braces.
    """
    boxes, unclosed = _locate_boxes(text)
    return [box.text for box in boxes], unclosed


@dataclass(frozen=True, slots=True)
class _Box:
    text: str
    start: int  # of the command
    end: int  # after the closing brace


def _locate_boxes(text: str) -> tuple[list[_Box], bool]:
    boxes: list[_Box] = []
    stack: list[tuple[bool, int, int, int]] = []  # is a box, its start, where its content starts, boxes known then
    for match in _BOX_OR_BRACE.finditer(text):
        token = match[0]
        if token == "}":
            if stack:
                is_box, start, content, known = stack.pop()
                if is_box and len(boxes) == known:
                    boxes.append(_Box(text[content : match.start()], start, match.end()))
        elif match["bare"]:
            boxes.append(_Box(match["bare"], match.start(), match.end()))
        elif token[-1] == "{" and token != "\\{":
            stack.append((token != "{", match.start(), match.end(), len(boxes)))
    return boxes, any(is_box for is_box, *_ in stack)


def _is_operand(text: str, box: _Box) -> bool:
    """Whether a sign or a power outside of the box changes what is in it: `-\\boxed{5}`, `\\boxed{5}^2`."""
    around = _SIGN_BEFORE.search(text, max(0, box.start - 20), box.start), _POWER_AFTER.match(text, box.end)
    return around != (None, None)


def _last_answer(text: str, boxes: list[_Box]) -> str:
    """The last box, with those before it that only a conjunction joins to it."""
    first = len(boxes) - 1
    while first > 0 and _JOINED.fullmatch(text, boxes[first - 1].end, boxes[first].start):
        first -= 1
    values: dict[str, str] = {}
    for box in boxes[first:]:
        values.setdefault(normalise(box.text), box.text)
    return ", ".join(values.values())


def grade_math(gold: str, answer: str, pool: GraderPool) -> Score:
    """PASS or FAIL when it can be decided whether `answer` equals `gold`, ERROR when it cannot.

    A gold answer that cannot be read is an error of the problem; an answer that cannot be read is a wrong answer, and
    so is one that hangs or crashes the comparison, or else a policy could escape its negative advantage that way.
    """
    if not gold.strip():
        return Score.error("The gold answer is empty.")
    if gold.strip() == answer.strip():
        return Score.passed(detail="same text")
    if mixes_digits(answer):
        return Score.failed(detail=f"two kinds of digits in one number: {answer[:80]!r}")
    gold, answer = normalise(gold), normalise(answer)
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return Score.failed(detail=f"The answer is longer than {MAX_ANSWER_CHARS} characters.")
    same = _decide_cheaply(gold, answer)
    if same is not None:
        return Score.passed(detail="equal") if same else Score.failed(detail=f"not equal: {answer[:80]!r}")
    result = pool.check(gold, answer)
    if result.error is not None and result.at == "answer":
        ends = {"deadline": f"did not end within {pool.deadline_s:g} s", "out of memory": "ran out of memory"}
        return Score.failed(
            detail=f"the comparison with this answer {ends.get(result.error, f'failed: {result.error}')}"
        )
    if result.error is not None:
        return Score.error(f"Comparing with the gold answer failed: {result.error}.")
    if result.unparsed == "gold":
        return Score.error(f"The gold answer is not a formula: {gold[:80]!r}.")
    if result.unparsed:
        return Score.failed(detail=f"not a formula: {answer[:80]!r}")
    return Score.passed(detail="equal formulas") if result.equal else Score.failed(detail=f"not equal: {answer[:80]!r}")


def _decide_cheaply(gold: str, answer: str) -> bool | None:
    """Whether they are equal, by text, words and exact numbers alone; None where that takes algebra."""
    if is_choice(gold):
        return read_chosen(answer) == read_chosen(gold)
    if words := read_words(gold):
        number = read_number_word(gold)
        return words == read_words(answer) or (number is not None and number == answer)
    try:
        return same_answer(gold, answer, _undecided)
    except _UndecidedError:
        return None


class _UndecidedError(Exception):
    """Only algebra can tell."""


def _undecided(gold: str, answer: str) -> bool:
    raise _UndecidedError
