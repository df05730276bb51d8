"""Numbers as people write them, read exactly. Anything that needs algebra is not a number here."""

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 400  # beyond this, reading would cost more than any honest answer is worth
MAX_EXPONENT = 400
ROUNDED_DIGITS = 6  # after the point, and significant ones, from which a decimal may stand for another number
DOUBLE_DIGITS = 15  # significant ones that survive in a double; programs print up to 17

# Full-width forms and look-alikes. Not Unicode NFKC, which would turn `10²` into `102`.
_WIDE = str.maketrans(
    "０１２３４５６７８９．，－＋（）％／＝：；−–‐‑﹣⁄∕\u00a0\u2007\u2009\u202f", "0123456789.,-+()%/=:;-----//    "
)

_DECIMAL = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+"
_NUMBER = re.compile(rf"(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?(?P<percent>\s*\\?%)?")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FRAC = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<whole>[0-9]+)?\s*\\[dtc]?frac\s*"
    r"(?:\{\s*(?P<top>[-+]?[0-9]+)\s*\}|\s*(?P<t>[0-9]))\s*(?:\{\s*(?P<bottom>[-+]?[0-9]+)\s*\}|(?P<b>[0-9]))"
    r"(?P<percent>\s*\\?%)?"
)
_MIXED = re.compile(r"([-+]?)([0-9]+) +([0-9]+)/([0-9]+)")
_POWER_OF_TEN = re.compile(
    rf"(?:(?P<factor>{_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?:\{{\s*(?P<braced>[-+]?[0-9]{{1,3}})\s*\}}|(?P<digit>[0-9]))"
    r"|(?P<mantissa>[-+]?[0-9]+(?:\.[0-9]+)?)[eE](?P<e>[-+]?[0-9]{1,3})"
)
_REPEATING = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>[0-9]+)\.(?P<fixed>[0-9]*)"
    r"(?:\\(?:overline|bar|dot)\s*\{?(?P<period>[0-9]+)\}?|(?P<run>([0-9])\6{2,})\s*(?:\\[lc]?dots|\.\.\.|…))"
)


def widen(text: str) -> str:
    """Full-width digits and punctuation, and the various minus signs, as ASCII."""
    return text.translate(_WIDE)


def parse_number(text: str) -> Fraction | None:
    """The exact value of a written number, None for all else.

    Examples: `-5`, `7,425`, `.4`, `3/4`, `\\frac{3}{4}`, `1\\frac{1}{2}`, `1 1/2`, `12%` (which is 0.12), `1.5e3`,
    `2 \\times 10^{5}`, `0.\\overline{3}`, `0.333\\ldots` (at least three equal digits repeat).
    """
    text = widen(text).strip()
    if len(text) > MAX_NUMBER_CHARS:
        return None
    for pattern, read in ((_NUMBER, _quotient), (_FRAC, _frac), (_MIXED, _mixed), (_POWER_OF_TEN, _power_of_ten)):
        if match := pattern.fullmatch(text):
            return read(match)
    match = _REPEATING.fullmatch(text)
    return _repeating(match) if match else None


def equal_numbers(gold: str, answer: str) -> bool | None:
    """Whether two exactly readable numbers agree; None when one of them is not exactly readable.

    Equality is exact, except that a long decimal may stand for the number it rounds (`0.333333` for `1/3`), in either
    direction; see `rounding_step`.
    """
    if len(gold) > MAX_NUMBER_CHARS and _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return gold.removeprefix("+").lstrip("0") == answer.removeprefix("+").lstrip("0")
    left, right = parse_number(gold), parse_number(answer)
    if left is None or right is None:
        return None
    return left == right or _rounds_to(answer, right, left) or _rounds_to(gold, left, right)


def rounding_step(text: str, terminating: bool) -> Fraction | None:
    """How far a number may be from the decimal `text` that stands for it, e.g. 10**-6; None where none may.

    A decimal needs six digits after the point and six significant ones, and the number must be one that no decimal
    can write (not `terminating`): then it is one unit of the last place. Beyond 15 significant digits, where doubles
    are printed, the rest does not count, whatever the number.
    """
    match = re.fullmatch(rf"[-+]?([0-9]*)\.([0-9]{{{ROUNDED_DIGITS},}})", widen(text).strip())
    if match is None:
        return None
    places, significant = len(match[2]), len((match[1] + match[2]).lstrip("0"))
    if significant > DOUBLE_DIGITS:
        return Fraction(10) ** (significant - DOUBLE_DIGITS - places)
    return Fraction(1, 10**places) if significant >= ROUNDED_DIGITS and not terminating else None


def terminates(value: Fraction) -> bool:
    """Whether a decimal can write this number."""
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _rounds_to(text: str, value: Fraction, target: Fraction) -> bool:
    step = rounding_step(text, terminates(target))
    return step is not None and abs(value - target) < step


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _divide(top: Fraction, bottom: Fraction, percent: str | None) -> Fraction | None:
    return None if bottom == 0 else top / bottom / (100 if percent else 1)


def _quotient(match: re.Match[str]) -> Fraction | None:
    return _divide(_decimal(match["top"]), _decimal(match["bottom"] or "1"), match["percent"])


def _frac(match: re.Match[str]) -> Fraction | None:
    top, bottom = match["top"] or match["t"], match["bottom"] or match["b"]
    if match["whole"] and top[0] + bottom[0] != (top[0] + bottom[0]).strip("+-"):
        return None  # `2\frac{-1}{3}` is a product
    value = _divide(Fraction(top), Fraction(bottom), None)
    if value is None:
        return None
    value = (value + int(match["whole"] or 0)) / (100 if match["percent"] else 1)
    return -value if match["sign"] == "-" else value


def _mixed(match: re.Match[str]) -> Fraction | None:
    part = _divide(Fraction(match[3]), Fraction(match[4]), None)
    if part is None:
        return None
    return (-1 if match[1] == "-" else 1) * (int(match[2]) + part)


def _power_of_ten(match: re.Match[str]) -> Fraction | None:
    exponent = int(match["braced"] or match["digit"] or match["e"])
    factor = _decimal(match["factor"] or match["mantissa"] or "1")
    return factor * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _repeating(match: re.Match[str]) -> Fraction:
    fixed = match["fixed"] or ""
    period = match["period"] or match["run"][0]
    scale = 10 ** len(fixed)
    value = Fraction(int(match["whole"] + fixed), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
    return -value if match["sign"] == "-" else value
