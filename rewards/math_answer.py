"""Mathematical answers: find the one a completion commits to, decide whether it equals the gold answer.

Only the final part is read (never the reasoning), and there only `\\boxed{...}` and `<answer>...</answer>`. A
completion that offers several different answers has none. Equality is decided exactly where both sides are numbers or
the same text, otherwise by `rewards.grader_process`.
"""

import re
from dataclasses import dataclass

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, parse_completion
from rewards.exact import equal_numbers, parse_number, widen
from rewards.grader_process import NOT_STARTED, GraderPool
from rewards.reward import Score

MAX_ANSWER_CHARS = 1000  # longer ones are never equal to a gold answer, only slow to parse

_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalAnswer:
    """`text` is what the completion commits to, or None, and then `problem` says why."""

    text: str | None
    problem: str = ""


def extract_answer(completion: str) -> FinalAnswer:
    """The one answer in the final part of a completion: a box, or the answer tag (whose box, if any, counts)."""
    parsed = parse_completion(completion)
    tagged = parsed.answer is not None
    if not tagged and (ANSWER_OPEN in parsed.final or ANSWER_CLOSE in parsed.final):
        return FinalAnswer(text=None, problem="answer tags are not exactly one pair")
    boxes, unclosed = find_boxes(parsed.final)
    if unclosed:
        return FinalAnswer(text=None, problem="a box is never closed")
    candidates = list(boxes)
    if parsed.answer is not None and not find_boxes(parsed.answer)[0]:
        candidates.append(parsed.answer)
    if not candidates:
        return FinalAnswer(text=None, problem="no final answer")
    if len({normalise(text) for text in candidates}) > 1:
        return FinalAnswer(text=None, problem="several different final answers")
    answer = candidates[-1].strip()
    return FinalAnswer(text=answer) if answer else FinalAnswer(text=None, problem="the final answer is empty")


def find_boxes(text: str) -> tuple[list[str], bool]:
    """Contents of the `\\boxed{...}` in order, and whether one is left open. Linear in the text.

    Of boxes inside boxes the innermost count. Escaped braces (`\\{`) are text.
    """
    boxes: list[str] = []
    stack: list[tuple[bool, int, int]] = []  # is a box, where its content starts, boxes known at that point
    for match in _BOX_OR_BRACE.finditer(text):
        token = match[0]
        if token == "}":
            if stack:
                is_box, start, known = stack.pop()
                if is_box and len(boxes) == known:
                    boxes.append(text[start : match.start()])
        elif token[-1] == "{" and token != "\\{":
            stack.append((token != "{", match.end(), len(boxes)))
    return boxes, any(is_box for is_box, _, _ in stack)


def grade_math(gold: str, answer: str, pool: GraderPool) -> Score:
    """PASS or FAIL when it can be decided whether `answer` equals `gold`, ERROR when it cannot.

    A gold answer that cannot be read is an error of the problem; an answer that cannot be read is a wrong answer, and
    so is one that hangs or crashes the comparison, or else a policy could escape its negative advantage that way.
    """
    if not gold.strip():
        return Score.error("The gold answer is empty.")
    if gold.strip() == answer.strip():
        return Score.passed(detail="same text")
    if len(answer) > MAX_ANSWER_CHARS:
        return Score.failed(detail=f"The answer is longer than {MAX_ANSWER_CHARS} characters.")
    gold, answer = normalise(gold), normalise(answer)
    decided = _decide_cheaply(gold, answer)
    if decided is not None:
        return decided
    result = pool.check(gold, answer)
    if result.error is not None:
        return _without_comparison(gold, result.error, pool)
    if result.unparsed == "gold":
        return Score.error(f"The gold answer is not a formula: {gold[:80]!r}.")
    if result.unparsed:
        return Score.failed(detail=f"not a formula: {answer[:80]!r}")
    return Score.passed(detail="equal formulas") if result.equal else Score.failed(detail=f"not equal: {answer[:80]!r}")


def _without_comparison(gold: str, error: str, pool: GraderPool) -> Score:
    """FAIL where the grader works on the gold answer alone, so that the answer is to blame; ERROR where it does not."""
    if error.startswith(NOT_STARTED) or not pool.reads(gold):
        return Score.error(f"Comparing with the gold answer failed: {error}.")
    ends = {"deadline": f"did not end within {pool.deadline_s:g} s", "out of memory": "ran out of memory"}
    return Score.failed(detail=f"the comparison with this answer {ends.get(error, f'failed: {error}')}")


def _decide_cheaply(gold: str, answer: str) -> Score | None:
    if gold.replace(" ", "") == answer.replace(" ", "") and not _SPLIT_DIGITS.search(answer):
        return Score.passed(detail="same text")
    if not answer:
        return Score.failed(detail="The answer is empty.")
    same = equal_numbers(gold, answer)
    if same is not None:
        return Score.passed(detail="equal numbers") if same else Score.failed(detail=f"not equal: {answer[:80]!r}")
    if _is_words(gold):  # as formulas, `listen` and `silent` are the same product of letters
        same = gold.lower() == answer.lower()
        return Score.passed(detail="same words") if same else Score.failed(detail=f"other words: {answer[:80]!r}")
    if _SPLIT_DIGITS.search(answer):
        return Score.failed(detail=f"not one number: {answer[:80]!r}")
    if _contradicts_itself(answer):
        return Score.failed(detail=f"contradicts itself: {answer[:80]!r}")
    if count_alternatives(gold) == 1 and count_alternatives(answer) > 1:
        return Score.failed(detail=f"several answers where one is asked: {answer[:80]!r}")
    if _has_percent(gold) != _has_percent(answer) and equal_numbers("0", gold.rstrip("\\%")) is not None:
        return Score.failed(detail=f"percent on one side only: {answer[:80]!r}")
    return None


# --- One spelling for many ------------------------------------------------------------------------------------------

_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ",
    "∞": r"\infty ", "π": r"\pi ", "∪": r"\cup ", "∩": r"\cap ", "°": r"^\circ ", "，": ",", "、": ",", "；": ";",
}  # fmt: skip
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r",\s*\\!\s*|\{,\}|(?<=\d)\\[,;:]\s*(?=,?\d{3}(?!\d))", ","),
        (r"\\[!;,: ]|~|\\q?quad(?![a-zA-Z])", " "),
        (r",?\s*\\(?:text|mbox|textnormal|textrm|mathrm)\s*\{\s*(?:or|and|或|和)\s*\}", ","),
        (r"\\mathrm\s*\{\s*([a-z])\s*\}", r"\1"),
        (r",?\s+(?:or|and)\s+|或者?|和", ","),
        (r"(?:\\(?:text|mbox|textnormal)\s*\{\s*)?\b(?:percent|pct)\b(?:\s*\})?", r"\\%"),
        (r"√\s*\(?(\w+)\)?|(?<![\\a-zA-Z])sqrt\((\w+)\)", r"\\sqrt{\1\2}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"\*\*\s*(-?\w+)", r"^{\1}"),
        (r"(?<![\\a-zA-Z_^{\d])(\d{1,3}(?: \d{3})+)(?![\d ])", lambda m: m[1].replace(" ", "")),
        (r"\\?\$", ""),
        (r"\s+", " "),
    ]
]
_BOLD = re.compile(r"^\*\*(.*)\*\*$", re.DOTALL)
_TEXT = re.compile(r"^\\(?:text|textbf|mbox|textnormal|mathrm)\s*\{([^{}]*)\}$")
_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*|[一-鿿]+")
_SPLIT_DIGITS = re.compile(r"\d\s+\d")


def normalise(text: str) -> str:
    """One spelling for the same formula: spacing, currency signs, thousands separators, full-width characters."""
    text = text.strip()
    if len(text) > 20 * MAX_ANSWER_CHARS:
        return text
    if bold := _BOLD.match(text):
        text = bold[1]
    text = widen(text)
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".。").strip()
    if words := _TEXT.match(text):
        text = words[1].strip().removeprefix("(").removesuffix(")")
    return text


def count_alternatives(text: str) -> int:
    """How many values a normalised formula lists: `3, 4` and `\\{3, 4\\}` and `3 \\pm 1` have two, `(3, 4)` is one."""
    if text.startswith("\\{") and text.endswith("\\}"):
        text = text[2:-2]
    depth, count = 0, 1
    for match in re.finditer(r"\\pm(?![a-zA-Z])|\\.|[()\[\]{},;?]", text):
        token = match[0]
        if token in ("(", "[", "{", "\\{"):
            depth += 1
        elif token in (")", "]", "}", "\\}"):
            depth -= 1
        elif token == "\\pm" or (depth <= 0 and token in (",", ";", "?") and text[match.end() :].strip()):
            count += 1
    return count if not re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else 1


def _is_words(text: str) -> bool:
    return _WORDS.fullmatch(text) is not None


def _contradicts_itself(text: str) -> bool:
    """Whether it is a chain such as `43 = 42`, of which a comparison would only read the last number."""
    numbers = [parse_number(side) for side in text.split("=")]
    return None not in numbers and len(set(numbers)) > 1


def _has_percent(text: str) -> bool:
    return "%" in text
