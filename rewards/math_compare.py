"""Whether two formulas are equal, by sympy. Runs in the child processes of `rewards.grader_process` only.

Text is read by latex2sympy's grammar (ANTLR). math-verify would also try sympy's `parse_expr`, which evaluates Python,
and takes capitals for small letters, so only its comparison is used. Parsing and comparing may compute without end;
whoever calls this must be able to kill it.

Rules:
- numbers are equal when they agree exactly, irrational ones to 40 digits; a long decimal may stand for the number it
  rounds;
- expressions are equal when they agree at random points, positive and negative, to 40 digits;
- equations are equal when one is a multiple of the other; inequalities too, with the sign that the multiple demands;
- everything else (sets, unions, matrices, unevaluated sums) is math-verify's to decide;
- a gold answer that is no formula (`P(A|B)`, a time of day) is equal to the same text alone.
"""

import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewards.exact import rounding_step, terminates
from rewards.math_text import same_text

Report = Callable[[str], None]

POINTS = 5  # where expressions must agree
TRIES = 16  # points tried to find as many where both have a value
DIGITS = 60
_RELATIVE = 10**-40
MAX_KNOWN = 256  # gold answers kept in a worker

_BARE_LOG = re.compile(r"\\log(?![a-zA-Z_]|\s*_)")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\\circ(?![a-zA-Z])")
# What may be complex; variables of all else are taken to be real.
_COMPLEX = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|matri|\\(?:Re|Im|det|operatorname)(?![a-zA-Z])")
# Spellings that latex2sympy misreads.
_READABLE = [
    (re.compile(r"(?<![a-zA-Z\\])I(?![a-zA-Z])"), r"\\iota "),  # a variable; the imaginary unit is `i`
    (re.compile(r"(?<![a-zA-Z\\])(?=(?:sin|cos|tan|cot|sec|csc|ln|log|exp)(?![a-zA-Z]))"), r"\\"),
    (re.compile(r"\\lg(?![a-zA-Z])"), r"\\log_{10} "),
    (re.compile(r"\\sqrt\s*\[\s*(\d*[13579])\s*\]\s*\{\s*-([^{}+-]*)\}"), r"(-\\sqrt[\1]{\2})"),
    (re.compile(r"\\log\s*_\s*(?:\{\s*e\s*\}|e)(?![a-zA-Z])"), r"\\ln "),
    (re.compile(r"(?<![\d.^_])(\d+(?:\.\d+)?)\s*(?=\(-?\d+(?:\.\d+)?\))"), r"\1 \\cdot "),
    (re.compile(r"(\\(?:sin|cos|tan|cot|sec|csc|ln|log)(?:\s*\^\s*\{?\d\}?)?)\s+([a-zA-Z])(?![a-zA-Z(_])"), r"\1(\2)"),
]
# math-verify's own, without units: it takes `5h` for 5 hours, while `rewards.math_units` has removed all units before.
_NORMALISATION: dict[str, Any] = {
    "basic_latex": True, "units": False, "malformed_operators": True, "nits": True, "boxed": "all", "equations": False,
}  # fmt: skip
_known: dict[str, Any] = {}


class UnreadableError(ValueError):
    """The gold answer has no value, or the answer is no formula: `side` is "gold" or "answer"."""

    def __init__(self, side: str):
        super().__init__(f"The {side} cannot be read.")
        self.side = side


def equal_formulas(gold: str, answer: str, report: Report = lambda side: None) -> bool:
    """Whether two normalised formulas are equal. Raises UnreadableError where one is none.

    `report` is told before time is spent on the gold answer alone ("gold") and before it is spent on both ("answer"),
    so that a comparison that never ends can be blamed on one of them.
    """
    if gold not in _known:
        report("gold")
        _known[gold] = _read_gold(gold)
        if len(_known) > MAX_KNOWN:
            del _known[next(iter(_known))]
        report("answer")
    left = _known[gold]
    if left is None:
        return same_text(gold, answer)
    right = parse_formula(answer)
    if right is None:
        raise UnreadableError("answer")
    if _equal(left, right, gold, answer):
        return True
    if _BARE_LOG.search(gold) or _BARE_LOG.search(answer):
        return any(_equal_with_log(gold, answer, log) for log in ("\\ln ", "\\log_{10} "))
    return False


def _read_gold(gold: str) -> Any:
    """The formula of a gold answer, None where it is none. Raises UnreadableError where it has no value.

    Gold answers come once per completion of a group, so they are kept.
    """
    from sympy import Expr

    left = parse_formula(gold)
    if isinstance(left, Expr) and not _is_matrix(left):
        exact = _exact(left)
        if exact is None:
            raise UnreadableError("gold")
        if not exact.free_symbols:
            _value(exact)
    return left


def parse_formula(text: str) -> Any:
    """The sympy object written as LaTeX in `text`, or None when it is not a formula."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    trigonometric = _TRIGONOMETRIC.search(text) is not None
    for pattern, replacement in _READABLE:
        text = pattern.sub(replacement, text)
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})" if trigonometric else r"\1", text)
    text = normalize_latex(text, NormalizationConfig(**_NORMALISATION))
    try:
        return latex2sympy(
            text,
            is_real=_COMPLEX.search(text) is None,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),  # R and r are two variables
        )
    except MemoryError:
        raise
    except Exception:
        return None


def _equal_with_log(gold: str, answer: str, log: str) -> bool:
    """`\\log` without a base is read as natural, then as decimal, on both sides alike."""
    left, right = (parse_formula(_BARE_LOG.sub(lambda _: log, side)) for side in (gold, answer))
    return left is not None and right is not None and _equal(left, right, gold, answer)


def _equal(left: Any, right: Any, gold: str, answer: str) -> bool:
    from sympy import Eq, Expr

    if isinstance(left, Expr) and isinstance(right, Expr) and not (_is_matrix(left) or _is_matrix(right)):
        decided = _equal_expressions(left, right, gold, answer)
    elif isinstance(left, Eq) and isinstance(right, Eq):
        decided = _equal_equations(left, right)
    else:
        decided = _equal_relations(left, right)
    return _verify(left, right) if decided is None else decided


def _verify(left: Any, right: Any) -> bool:
    """math-verify's judgement, with its own timeouts (SIGALRM) off."""
    from math_verify import verify

    return bool(verify([left], [right], timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True))


def _is_matrix(side: Any) -> bool:
    return bool(getattr(side, "is_Matrix", False))


def _equal_expressions(left: Any, right: Any, gold: str, answer: str) -> bool | None:
    if left == right and not _undefined(left):
        return True
    left, right = _exact(left), _exact(right)
    if left is None or right is None:
        return None
    if not (left.free_symbols | right.free_symbols):
        return _equal_constants(left, right, gold, answer)
    return _agree_at_points(left, right)


def _exact(side: Any) -> Any:
    """Evaluated, with decimals as fractions and `i` and `e` as the constants; None for a form without a value.

    The parser gives symbols assumptions by what else is in the text, so that `x` need not equal `x`: these go.
    """
    from sympy import E, Float, I, Rational, Symbol

    side = side.doit()
    constants = {"i": I, "e": E}
    side = side.subs({symbol: constants.get(symbol.name, Symbol(symbol.name)) for symbol in side.free_symbols})
    side = side.xreplace({number: Rational(str(number)) for number in side.atoms(Float)})
    return None if _undefined(side) else side


def _undefined(side: Any) -> bool:
    from sympy import nan, zoo

    return side.has(nan, zoo)


def _equal_constants(left: Any, right: Any, gold: str, answer: str) -> bool | None:
    from sympy import Rational, oo

    if left.has(oo, -oo) or right.has(oo, -oo):
        return bool(left == right)
    if left == right:
        return True
    difference, size = _value(left - right), _value(left)
    other = _value(right)
    if difference is None or size is None or other is None:
        return None
    largest = max(abs(size), abs(other))
    both_rational = isinstance(left, Rational) and isinstance(right, Rational)
    if largest == 0 or (not both_rational and abs(difference) <= largest * _RELATIVE):
        return True
    for text, value, exact in ((answer, right, left), (gold, left, right)):
        step = rounding_step(text, _is_decimal(exact))
        if step is not None and isinstance(value, Rational):
            return bool(abs(difference) < Rational(step.numerator, step.denominator))
    return False


def _is_decimal(value: Any) -> bool:
    """Whether a decimal can write this number, so that a rounded one is another number."""
    from sympy import Rational

    return isinstance(value, Rational) and terminates(Fraction(int(value.p), int(value.q)))


def _value(expression: Any) -> Any:
    """The number to DIGITS digits, 0 where all of them cancel and algebra agrees; None where there is no number."""
    from sympy import nan, oo, zoo

    value = expression.evalf(DIGITS, maxn=400)
    if not value.is_number or value.has(nan, zoo, oo) or not _is_complex_number(value):
        return None
    if value.is_Float and value._prec == 1:
        return value * 0
    return value


def _is_complex_number(value: Any) -> bool:
    real, imaginary = value.as_real_imag()
    return bool((real.is_Float or real.is_Rational) and (imaginary.is_Float or imaginary.is_Rational))


def _agree_at_points(left: Any, right: Any) -> bool | None:
    """True or False when enough points were found where both sides have a value, else None."""
    from sympy import I

    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    complex_valued = left.has(I) or right.has(I)
    rng = random.Random(0)
    agreed = complex_only = 0
    for attempt in range(TRIES):
        point = _draw(symbols, rng, negative=attempt % 2)
        a, b = _value(left.subs(point)), _value(right.subs(point))
        if a is None or b is None:
            continue
        if not complex_valued and not (a.is_real and b.is_real):
            complex_only += 1  # outside of the real domain, e.g. the root of a negative number
            continue
        largest = max(abs(a), abs(b))
        if largest and abs(a - b) > largest * _RELATIVE:
            return False
        agreed += 1
        if agreed == POINTS:
            return True
    return True if agreed + complex_only >= POINTS and agreed >= 2 else None


def _draw(symbols: list[Any], rng: random.Random, negative: int = 0) -> dict[Any, Any]:
    """A random point with values of magnitude 0.1 to 3; at least the first `negative` ones are below 0."""
    from sympy import Rational

    point = {}
    for position, symbol in enumerate(symbols):
        value = Rational(rng.randint(101, 2999), 997)
        below = position < negative or (negative and rng.random() < 0.5)
        point[symbol] = -value if below else value
    return point


def _equal_equations(left: Any, right: Any) -> bool | None:
    """Equations with the same solutions up to a factor: `2x = 4` and `x - 2 = 0`."""
    ratio = _constant_ratio(left, right)
    if ratio is None:
        return None
    return ratio != 0


def _equal_relations(left: Any, right: Any) -> bool | None:
    from sympy import GreaterThan, LessThan, Ne, StrictGreaterThan, StrictLessThan

    if isinstance(left, Ne) and isinstance(right, Ne):
        return _equal_equations(left, right)
    directions = {
        GreaterThan: (1, False),
        StrictGreaterThan: (1, True),
        LessThan: (-1, False),
        StrictLessThan: (-1, True),
    }
    if type(left) not in directions or type(right) not in directions:
        return None
    (sign, strict), (other_sign, other_strict) = directions[type(left)], directions[type(right)]
    if strict != other_strict:
        return False
    ratio = _constant_ratio(left, right)
    if ratio:
        return bool(ratio > 0) == (sign == other_sign)
    return None


def _constant_ratio(left: Any, right: Any) -> Any:
    """The factor between the two relations, 0 when it is not constant, None when it cannot be computed."""
    a, b = _exact(left.lhs - left.rhs), _exact(right.lhs - right.rhs)
    if a is None or b is None:
        return None
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return None
    rng = random.Random(0)
    ratios = []
    for _ in range(TRIES):
        point = _draw(symbols, rng)
        numerator, denominator = _value(a.subs(point)), _value(b.subs(point))
        if numerator is not None and denominator is not None and numerator != 0 and denominator != 0:
            ratios.append(numerator / denominator)
        if len(ratios) == POINTS:
            break
    if len(ratios) < POINTS or not all(ratio.is_real for ratio in ratios):
        return None
    constant = all(abs(ratio - ratios[0]) <= abs(ratios[0]) * _RELATIVE for ratio in ratios)
    return ratios[0] if constant else 0
