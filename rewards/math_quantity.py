"""Single values: numbers with units, percent, ratios, numerals of a base, decimal commas.

`same_value` decides what needs no algebra and hands the rest, stripped of units, to the formula comparison given.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice

from rewards.exact import equal_numbers, parse_number
from rewards.math_text import drop_modulus, read_number_word
from rewards.math_units import Unit, counted_words, is_known, parse_unit, same_unit

Formulas = Callable[[str, str], bool]  # whether two formulas (gold, answer) are equal

_SPLIT_DIGITS = re.compile(r"(?<![_^\d])\d+\s+\d")
_BASE = re.compile(r"\(?([0-9][0-9A-Za-z]*)\)?\s*_\s*\{?\s*(?:\\text\s*\{)?\s*\(?\s*(\w+)\s*\)?\s*\}?\s*\}?")
_IN_TEN = re.compile(r"^(\d+)\s*_\s*(?:10|\{\s*(?:\\text\s*\{)?\s*(?:10|ten)\s*\}?\s*\})$")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*:\s*\d+(?:\.\d+)?)+")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,(?:\d{1,2}|\d{4,})")
_PERCENT = re.compile(r"\s*\\%$")

_TEXT_UNIT = re.compile(
    r"(?:(?:[\s/.]|\\cdot(?![a-zA-Z]))*\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|rm|operatorname)\s*"
    r"\{[a-zA-Z /.^²³()\-一-鿿]*[23]?\}(?:\s*\^\s*\{?\s*-?[1-9]\s*\}?)?)+$"
)
_PLAIN_UNIT_START = re.compile(r"(?<=[\d}\s])(?=[a-zA-Z一-鿿]|\\(?:text|mathrm|mbox)\s*\{)")
_MAX_STARTS = 4  # of plain units, tried from the left
_FRACTION_UNIT = re.compile(
    r"\s*\\frac\s*\{((?:\\(?:text|mathrm)\s*\{)?\s*[a-zA-Z]+\s*\}?)\}\s*\{((?:\\(?:text|mathrm)\s*\{)?[^{}]+\}?)\}$"
)
_REMARK = re.compile(r"\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|operatorname)\s*\{([^{}]*)\}")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_STRAY = re.compile(r"[?;&#@\"`~]|[^\x00-\x7f]|(?<=[\d)}])'")
_FORMULA_COMMANDS = {
    f"\\{command}"
    for line in (
        "frac sqrt pi cdot times div pm mp infty sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln",
        "log lg exp sum prod int iint oint lim binom dbinom tbinom leq geq neq in cup cap setminus emptyset",
        "mathbb circ begin end alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa",
        "lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma",
        "Upsilon Phi Psi Omega overline bar hat vec dot partial nabla lfloor rfloor lceil rceil gcd lcm",
        "min max mod pmod bmod det tr mathcal angle triangle parallel Re Im arg deg",
        "lVert rVert mid over dfrac middle",
    )
    for command in line.split()
}
_DEGREES = re.compile(r"\s*\^\\circ\s*(?:\\(?:text|mathrm)\s*\{\s*([CF])\s*\}|([CF]))?$")
_DEGREE = (("degree", 1),)
_SCALES = {"": "degree", "C": "celsius", "F": "fahrenheit"}
_MAGNITUDES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
    "百": 10**2, "千": 10**3, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_MAGNITUDE = re.compile(rf"((?:\\[a-z]+\s*\{{)?\s*)(?:({'|'.join(_MAGNITUDES)})s?(?![a-zA-Z]))")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and its unit, () for none. `doubt` whether the unit is a product of letters: 0 none, 1 some, 2 more.

    `2 cm` and `2\\text{ m}` are certain; `2mg` may be a product, and `2m` likely is.
    """

    value: str
    unit: Unit = ()
    doubt: int = 0


def same_value(gold: str, answer: str, formulas: Formulas) -> bool:
    """Whether two normalised single values are equal. `formulas` may raise; that is passed on.

    Units may be left out on one side; where both sides have one, it must be the same. `50%` is 0.5. A gold answer in
    percent may be answered without the sign, since the problem has set the unit; the reverse is another number.
    """
    if answer and gold.replace(" ", "") == answer.replace(" ", "") and not _has_split_digits(answer):
        return True
    if not answer or _has_split_digits(answer):
        return False
    gold, answer = _IN_TEN.sub(r"\1", gold), _IN_TEN.sub(r"\1", answer)
    for decide in (_same_numeral, _same_ratio, _same_number):
        decided = decide(gold, answer)
        if decided is not None:
            return decided
    return _same_quantity(gold, answer, formulas)


def same_decimal_comma(gold: str, answer: str) -> bool | None:
    """`1000,99` for 1000.99; three digits after a comma are thousands. None where this is not the question.

    A gold answer `1,2` stays a list: only two digits or more make its comma a decimal one.
    """
    for comma, point in ((gold, answer), (answer, gold)):
        if comma is gold and len(gold.partition(",")[2]) < 2:
            continue
        if _DECIMAL_COMMA.fullmatch(comma) and "." in point and parse_number(point) is not None:
            return parse_number(comma.replace(",", ".")) == parse_number(point)
    return None


def _has_split_digits(text: str) -> bool:
    return _SPLIT_DIGITS.search(text) is not None and parse_number(text) is None


def _same_number(gold: str, answer: str) -> bool | None:
    if _PERCENT.search(gold) and not _PERCENT.search(answer):
        bare = equal_numbers(_PERCENT.sub("", gold), answer)
        return bare or equal_numbers(gold, answer)
    return equal_numbers(read_number_word(gold) or gold, read_number_word(answer) or answer)


def _same_numeral(gold: str, answer: str) -> bool | None:
    """`101_2` equals `101_{2}` alone: the base is part of what was asked."""
    left, right = _BASE.fullmatch(gold), _BASE.fullmatch(answer)
    if left is None and right is None:
        return None
    if left is None or right is None:
        return False
    bases = [read_number_word(match[2]) or match[2] for match in (left, right)]
    return left[1].upper() == right[1].upper() and bases[0] == bases[1]


def _same_ratio(gold: str, answer: str) -> bool | None:
    """`2:4` equals `1:2` and `1/2`. What may be a time of day must match number by number."""
    if not _RATIO.fullmatch(gold):
        return None
    parts = [Fraction(part) for part in gold.split(":")]
    if not _RATIO.fullmatch(answer):
        if _CLOCK.fullmatch(gold) and not _RATIO.match(answer):
            return False  # `12:00` is no quotient
        number = parse_number(answer)
        known = number is not None and len(parts) == 2 and parts[1] != 0 and not _CLOCK.fullmatch(gold)
        return parts[0] / parts[1] == number if known else None
    others = [Fraction(part) for part in answer.split(":")]
    if len(parts) != len(others):
        return False
    if _CLOCK.fullmatch(gold.replace(" ", "")):
        return parts == others
    if any(part == 0 for part in (*parts, *others)):
        return parts == others
    return len({part / other for part, other in zip(parts, others, strict=True)}) == 1


def _same_quantity(gold: str, answer: str, formulas: Formulas) -> bool:
    left, right = _read_both(gold, answer)
    if not same_unit(left.unit, right.unit):
        return False
    gold_value, gold_unit, answer_value, answer_unit = left.value, left.unit, right.value, right.unit
    if drop_modulus(gold_value) == gold_value:
        answer_value = drop_modulus(answer_value)
    elif drop_modulus(answer_value) == answer_value:
        gold_value = drop_modulus(gold_value)
    if gold_unit == _DEGREE and not answer_unit and "\\pi" in answer:
        return _same_percent(_radians(gold_value), answer, formulas)
    if answer_unit == _DEGREE and not gold_unit and "\\pi" in gold:
        return _same_percent(gold, _radians(answer_value), formulas)
    if (gold_value, answer_value) == (gold, answer):
        return _same_percent(gold, answer, formulas)
    return same_value(gold_value, answer_value, partial(_same_percent, formulas=formulas))


def _read_both(gold: str, answer: str) -> tuple[Quantity, Quantity]:
    """Values and units. Letters that may be a product are a unit only beside the same one, or in an answer alone."""
    counted = counted_words(gold)
    left, right = split_unit(gold, counted), split_unit(answer, counted)
    if left.unit != right.unit and (left.doubt or right.doubt == 2):
        return (Quantity(gold) if left.doubt else left), (Quantity(answer) if right.doubt else right)
    return left, right


def _radians(degrees: str) -> str:
    return f"\\frac{{({degrees}) \\pi}}{{180}}"


def _same_percent(gold: str, answer: str, formulas: Formulas) -> bool:
    gold_percent, answer_percent = _PERCENT.search(gold), _PERCENT.search(answer)
    if hides_something(gold, answer):
        return False
    if not (gold_percent or answer_percent):
        return formulas(gold, answer)
    gold, answer = _PERCENT.sub("", gold), _PERCENT.sub("", answer)
    if gold_percent and answer_percent:
        return same_value(gold, answer, formulas)
    if answer_percent:
        return formulas(gold, f"\\frac{{{answer}}}{{100}}")
    return formulas(gold, answer) or formulas(f"\\frac{{{gold}}}{{100}}", answer)


def hides_something(gold: str, answer: str) -> bool:
    """Whether the answer has parts that a parser would skip, and that could be another answer or take this one back.

    Words in `\\text{...}` that are no unit, commands that are no mathematics of one value (`\\lor`), and stray signs.
    What the gold answer has as well is fine.
    """
    counted = counted_words(gold)
    remarks = [remark for remark in _REMARK.findall(answer) if remark not in gold]
    bare = _REMARK.sub(" ", answer)
    commands = set(_COMMAND.findall(bare)) - _FORMULA_COMMANDS - set(_COMMAND.findall(gold))
    stray = set(_STRAY.findall(bare)) - set(gold)
    return bool(commands or stray) or any(parse_unit(remark, counted) is None for remark in remarks)


def split_unit(text: str, counted: Collection[str] = ()) -> Quantity:
    """Value and unit of a normalised quantity; no unit, or words that are none: the text alone.

    Units are words in `\\text{...}` after a value, or plain words after a number. Magnitudes (`5 \\text{ million}`)
    become part of the value. `counted` as in `parse_unit`.
    """
    if match := _DEGREES.search(text):
        value = text[: match.start()].strip()
        of_angle = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", value)
        return Quantity(text) if of_angle or not value else Quantity(value, ((_SCALES[match[1] or match[2] or ""], 1),))
    match = _TEXT_UNIT.search(text)
    if match is not None and (value := text[: match.start()].strip()):
        read = _read_quantity(value, partial(parse_unit, counted=counted), match[0])
        return Quantity(*read) if read else Quantity(text)
    if match := _FRACTION_UNIT.search(text):
        value, unit = text[: match.start()], parse_unit(f"{match[1]}/{match[2]}", symbols=True)
        if unit and parse_number(value) is not None:
            return Quantity(value.strip(), unit, doubt=0 if "\\text" in match[0] or "\\mathrm" in match[0] else 1)
    for match in islice(_PLAIN_UNIT_START.finditer(text), _MAX_STARTS):
        value, words = text[: match.start()], text[match.start() :]
        if (parse_number(value) is not None or _CLOCK.fullmatch(value.strip())) and (
            read := _read_plain(value, words, counted)
        ):
            return read
    return Quantity(text)


def _read_plain(value: str, words: str, counted: Collection[str]) -> Quantity | None:
    """A number with plain words. Letters glued to it are no words but symbols of units, or else a product."""
    glued = not value.endswith(" ")
    unit_of = partial(parse_unit, symbols=True) if glued else partial(parse_unit, counted=counted)
    read = _read_quantity(value.strip(), unit_of, words)
    if read is None:
        return None
    letters = re.findall("[A-Za-z]", words)
    either = len(letters) == 1 or "\\" in value or not is_known(read[1])
    return Quantity(*read, doubt=(2 if len(letters) == 1 else 1 if letters else 0) if glued else int(either))


def _read_quantity(value: str, unit_of: Callable[[str], Unit | None], words: str) -> tuple[str, Unit] | None:
    unit = unit_of(words)
    if unit is not None:
        return value, unit
    number, magnitude = parse_number(value), _MAGNITUDE.match(words.strip())
    if number is None or magnitude is None:
        return None
    number *= _MAGNITUDES[magnitude[2]]
    return _read_quantity(str(number), unit_of, magnitude[1] + words.strip()[magnitude.end() :])
