"""Numbers as people write them, read exactly. Anything that needs algebra is not a number here."""

import re
from fractions import Fraction

MAX_NUMBER_CHARS = 400  # beyond this, reading would cost more than any honest answer is worth

# Full-width forms and look-alikes. Not Unicode NFKC, which would turn `10²` into `102`.
_WIDE = str.maketrans("０１２３４５６７８９．，－＋（）％／＝：；−–", "0123456789.,-+()%/=:;--")

_DECIMAL = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|[-+]?\.[0-9]+"
_NUMBER = re.compile(rf"(?P<top>{_DECIMAL})(?:\s*/\s*(?P<bottom>{_DECIMAL}))?(?P<percent>\s*\\?%)?")
_FRAC = re.compile(r"([-+]?)\s*\\[dtc]?frac\s*\{\s*([-+]?[0-9]+)\s*\}\s*\{\s*([-+]?[0-9]+)\s*\}(\s*\\?%)?")


def widen(text: str) -> str:
    """Full-width digits and punctuation, and the various minus signs, as ASCII."""
    return text.translate(_WIDE)


def parse_number(text: str) -> Fraction | None:
    """The exact value of `-5`, `7,425`, `.4`, `3/4`, `\\frac{3}{4}` or `12%` (which is 0.12); None for all else."""
    text = widen(text).strip()
    if len(text) > MAX_NUMBER_CHARS:
        return None
    if match := _FRAC.fullmatch(text):
        sign, top, bottom, percent = match.groups()
        top = f"-{top}" if sign == "-" and top[0] not in "+-" else top
    elif match := _NUMBER.fullmatch(text):
        top, bottom, percent = match["top"], match["bottom"] or "1", match["percent"]
    else:
        return None
    numerator, denominator = (Fraction(part.replace(",", "").rstrip(".")) for part in (top, bottom))
    if denominator == 0:
        return None
    return numerator / denominator / (100 if percent else 1)


def equal_numbers(gold: str, answer: str) -> bool | None:
    """Whether two exactly readable numbers agree; None when one of them is not exactly readable.

    Equality is exact, except that a decimal of at least six digits after the point may stand for a fraction that no
    decimal can write (`0.333333` for `1/3`), in either direction.
    """
    left, right = parse_number(gold), parse_number(answer)
    if left is None or right is None:
        return None
    return left == right or _rounds_to(answer, right, left) or _rounds_to(gold, left, right)


def _rounds_to(text: str, value: Fraction, target: Fraction) -> bool:
    digits = re.fullmatch(r"[-+]?[0-9]*\.([0-9]{6,})", widen(text).strip())
    if digits is None or _terminates(target):
        return False
    return abs(value - target) < Fraction(1, 10 ** len(digits[1]))


def _terminates(value: Fraction) -> bool:
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1
