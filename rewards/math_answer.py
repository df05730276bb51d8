"""Mathematical answers: find the one a completion commits to, decide whether it equals the gold answer.

Only the final part is read (never the reasoning), and there only `\\boxed{...}` and `<answer>...</answer>`. An answer
of several values is right where the gold answer has the same several values. Equality is decided here where both sides
are numbers, words or the same text, otherwise by `rewards.grader_process`; `docs/rewards.md` has the rules.
"""

import re
from dataclasses import dataclass

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, parse_completion
from rewards.grader_process import GraderPool
from rewards.math_box import Box, locate_boxes, read_around
from rewards.math_question import as_asked
from rewards.math_same import same_answer
from rewards.math_shape import MAX_PARTS
from rewards.math_text import (
    MAX_ANSWER_CHARS,
    is_broken,
    is_choice,
    mixes_digits,
    normalise,
    read_chosen,
    read_labelled,
    read_number_word,
    read_words,
    same_letters,
)
from rewards.reward import Score

_JOINED = re.compile(
    r"(?:[\s$,;&/|.~]|\\[,;:! \\()\[\]]|\\q?quad|or|and|maybe|perhaps|possibly|alternatively|otherwise|else|either"
    r"|或者?|和|与|也?可能是?|\\(?:text|mbox|textbf)\s*\{|\}|[xyzn]\s*=|=)*",
    re.IGNORECASE,
)


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
    boxes, unclosed = locate_boxes(parsed.final)
    if unclosed:
        return FinalAnswer(text=None, problem="a box is never closed")
    candidates = [_last_answer(parsed.final, boxes)] if boxes else []
    if parsed.answer is not None:
        inside, _ = locate_boxes(parsed.answer)
        candidates.append(_last_answer(parsed.answer, inside) if inside else parsed.answer)
    if not candidates:
        return FinalAnswer(text=None, problem="no final answer")
    answers = [candidate for candidate in candidates if candidate is not None]
    if len(answers) < len(candidates):
        return FinalAnswer(text=None, problem="the box is only a part of a formula")
    if len({normalise(text) for text in answers}) > 1:
        return FinalAnswer(text=None, problem="several different final answers")
    answer = answers[-1].strip()
    return FinalAnswer(text=answer) if answer else FinalAnswer(text=None, problem="the final answer is empty")


def find_boxes(text: str) -> tuple[list[str], bool]:
    """Contents of the `\\boxed{...}` in order, and whether one is left open. Linear in the text."""
    boxes, unclosed = locate_boxes(text)
    return [box.text for box in boxes], unclosed


def _last_answer(text: str, boxes: list[Box]) -> str | None:
    """The last box with those that only a conjunction joins to it, and with its unit; None inside of a formula.

    Empty where one of them is empty: an empty box takes back what is beside it.
    """
    first = len(boxes) - 1
    while (
        first > 0
        and len(boxes) - first < MAX_PARTS
        and _JOINED.fullmatch(text, boxes[first - 1].end, boxes[first].start)
    ):
        first -= 1
    joined = boxes[first:]
    suffix = read_around(text, joined[0].start, joined[-1].end)
    if suffix is None or any(box.operand for box in joined):
        return None
    contents = [box.text for box in joined]
    if not all(content.strip() for content in contents):
        return ""
    contents[-1] += suffix
    values: dict[str, str] = {}
    for content in contents:
        values.setdefault(normalise(content), content)
    return ", ".join(values.values())


def grade_math(gold: str, answer: str, pool: GraderPool, question: str = "") -> Score:
    """PASS or FAIL when it can be decided whether `answer` equals `gold`, ERROR when it cannot.

    What the question counts or wants in percent may stand beside the number of the answer.

    A gold answer that cannot be read is an error of the problem; an answer that cannot be read is a wrong answer, and
    so is one that hangs or crashes the comparison, or else a policy could escape its negative advantage that way.
    """
    if mixes_digits(answer):
        return Score.failed(detail=f"two kinds of digits in one number: {answer[:80]!r}")
    gold, answer = normalise(gold), normalise(answer)
    if is_broken(gold):
        return Score.error(f"The gold answer is not a formula: {gold[:80]!r}.")
    if gold == answer:
        return Score.passed(detail="same text")
    if question:
        answer = as_asked(question, gold, answer)
    if len(answer) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return Score.failed(detail=f"The answer is longer than {MAX_ANSWER_CHARS} characters.")
    letter, gold = read_labelled(gold) or (None, gold)
    same = (letter is not None and read_chosen(answer) == letter) or _decide_cheaply(gold, answer)
    if same is not None:
        return Score.passed(detail="equal") if same else Score.failed(detail=f"not equal: {answer[:80]!r}")
    return _decide_by_algebra(gold, answer, pool)


def _decide_by_algebra(gold: str, answer: str, pool: GraderPool) -> Score:
    result = pool.check(gold, answer)
    late = result.error == "deadline"
    if result.error is not None and result.at == "answer":
        ends = {"deadline": f"did not end within {pool.deadline_s:g} s", "out of memory": "ran out of memory"}
        detail = f"the comparison with this answer {ends.get(result.error, f'failed: {result.error}')}"
        return Score.failed(detail=detail, timed_out=late)
    if result.error is not None:
        return Score.error(f"Comparing with the gold answer failed: {result.error}.", timed_out=late)
    if result.unparsed == "gold":
        return Score.error(f"The gold answer has no value: {gold[:80]!r}.")
    if result.unparsed:
        return Score.failed(detail=f"not a formula: {answer[:80]!r}")
    return Score.passed(detail="equal formulas") if result.equal else Score.failed(detail=f"not equal: {answer[:80]!r}")


def _decide_cheaply(gold: str, answer: str) -> bool | None:
    """Whether they are equal, by text, words and exact numbers alone; None where that takes algebra."""
    if is_choice(gold):
        return read_chosen(answer) == read_chosen(gold)
    if read_chosen(answer) == gold.upper() <= "H":  # `(b)` may be an option or a variable
        return True
    if words := read_words(gold):
        number = read_number_word(gold)
        return words == read_words(answer) or same_letters(words, answer) or (number is not None and number == answer)
    try:
        return same_answer(gold, answer, _undecided)
    except _UndecidedError:
        return None


class _UndecidedError(Exception):
    """Only algebra can tell."""


def _undecided(gold: str, answer: str) -> bool:
    raise _UndecidedError
