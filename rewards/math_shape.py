"""The structure of an answer: lists, sets, tuples, intervals, matrices, `name = value`; what is inside comes after.

    text      = "x = 1, x = 2"
    shape     = Shape("list", (named x 1, named x 2))

Rules, each on normalised text (`rewards.math_text.normalise`):
- lists and sets have no order and no repetitions: `1, 2`, `\\{2, 1\\}` and `x = 1, x = 2` are equal; `1 \\pm 2` is
  `3, -1`;
- tuples, intervals and matrices have order, and brackets say which: `(1, 2)` is neither `[1, 2]` nor `(2, 1)`;
- names may be left out on one side; where both sides name values, the names must match: `a=1, b=2`, not `a=2, b=1`;
- in a chain `a = b = c` of an answer every side must be right: a chain is no way to offer several values;
- one value is never equal to several.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.exact import parse_number
from rewards.math_quantity import Formulas, same_decimal_comma, same_value

MAX_DEPTH = 12  # of nested brackets; deeper ones are compared as they are
MAX_PARTS = 100  # of a list; sets of more are compared in order

_OPEN, _CLOSE = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+|.)|.", re.DOTALL)
_PM = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:leq|geq|neq|approx|equiv|sim|in|subset|cong|to|mid)(?![a-zA-Z])|[<>|]")
_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus|bigcup)(?![a-zA-Z])")
_MEMBER = re.compile(r"^(.{1,30}?)\s*\\in(?![a-zA-Z])\s*(.+)$", re.DOTALL)
_SET_BUILDER = re.compile(
    r"\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|\||:)\s*(.*)\\\}", re.DOTALL
)
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_TEX_NAME = r"\\(?!log|ln|sin|cos|tan|exp|sqrt|frac|int|sum|prod|lim|infty|pi(?![a-zA-Z]))[a-zA-Z]+"
_SUBSCRIPT = r"(?:\s*_\s*(?:\{[^{}=]*\}|[A-Za-z0-9]))?(?:\s*\^\s*\{\s*(?:\\prime|-1|\(\w+\))\s*\}|'+)?"
_NAME = re.compile(
    rf"\|?(?:(?:{_TEX_NAME}\s*)?(?:\{{\s*)?(?:[A-Za-z]+|{_TEX_NAME}){_SUBSCRIPT}(?:\s*\}})?)"
    r"(?:\s*\(\s*(?:[A-Za-z0-9\\, ]|\|)*\))?\|?(?:\s*:\s*[A-Za-z]+)?"
    r"|\\frac\s*\{\s*[A-Z]{2}\s*\}\s*\{\s*[A-Z]{2}\s*\}|\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)"
    r"|\\(?:text|mbox|textbf|mathrm)\s*\{[^{}=]*\}"
)
_CALL = re.compile(r"([A-Za-z])\s*\(\s*([a-z])\s*\)")
_ELLIPSIS = "\\ldots"


@dataclass(frozen=True, slots=True)
class Shape:
    """`kind` is value, named, chain, list, set, sequence, tuple with its brackets (`()`, `(]`, ...) or matrix RxC."""

    kind: str
    text: str
    parts: tuple["Shape", ...] = ()
    name: str = ""


def same_answer(gold: str, answer: str, formulas: Formulas) -> bool:
    """Whether two normalised answers are equal. `formulas` compares what has no structure and may raise."""
    decided = same_decimal_comma(gold, answer)  # before its comma is taken for a list
    return _same(read_shape(gold), read_shape(answer), formulas) if decided is None else decided


def read_shape(text: str, depth: int = 0) -> Shape:
    """The structure of a normalised answer. Anything not understood is a value."""
    return _read(text.strip(), min(depth, MAX_DEPTH))


@lru_cache(maxsize=256)
def _read(text: str, depth: int) -> Shape:
    if depth >= MAX_DEPTH or not text:
        return Shape("value", text)
    for reader in (_read_matrix, _read_collection, _read_brackets, _read_relation, _read_pm):
        shape = reader(text, depth + 1)
        if shape is not None:
            return shape
    return Shape("value", text)


def _read_matrix(text: str, depth: int) -> Shape | None:
    if match := _MATRIX.fullmatch(text):
        if "\\begin" in match[2]:
            return None
        rows = [row for row in re.split(r"\\\\|\\cr(?![a-z])", match[2].replace("\\hline", "")) if row.strip()]
        cells = [row.split("&") for row in rows]
    elif text.startswith("[[") and text.endswith("]]"):
        cells = [
            split_top(row.strip()[1:-1], ",") for row in split_top(text[1:-1], ",") if _wrapped(row.strip(), "[", "]")
        ]
        if not cells:
            return None
    else:
        return None
    widths = {len(row) for row in cells}
    if len(widths) != 1:
        return None
    parts = tuple(read_shape(cell, depth) for row in cells for cell in row)
    return Shape(f"matrix {len(cells)}x{widths.pop()}", text, parts)


def _read_collection(text: str, depth: int) -> Shape | None:
    if text in ("\\emptyset", "\\{\\}", "\\{ \\}", "\\{\\emptyset\\}"):
        return Shape("set", text)
    pieces = [piece for piece in split_top(text, ";") if piece.strip()]
    if len(pieces) > 1:
        return _collection("list", text, [_read_group(piece, depth) for piece in pieces])
    pieces = [piece for piece in split_top(text, ",?") if piece.strip()]
    if len(pieces) > 1:
        return _collection("list", text, [read_shape(piece, depth) for piece in pieces])
    if condition := _SET_BUILDER.fullmatch(text):
        return read_shape(condition[2], depth)
    if _wrapped(text, "\\{", "\\}") and not re.search(r"\\mid|[|:]", text):
        pieces = [piece for piece in split_top(text[2:-2], ",;") if piece.strip()]
        return _collection("set", text, [read_shape(piece, depth) for piece in pieces])
    return None


def _collection(kind: str, text: str, parts: list[Shape]) -> Shape:
    flat = [inner for part in parts for inner in (part.parts if part.kind == "list" else (part,))]
    return Shape("sequence" if any(part.text == _ELLIPSIS for part in flat) else kind, text, tuple(flat))


def _read_group(text: str, depth: int) -> Shape:
    """One piece between semicolons: `p=5, q=2` is the tuple of its values."""
    shape = read_shape(text, depth)
    if shape.kind == "list" and all(part.kind == "named" for part in shape.parts):
        return Shape("()", text, shape.parts)
    return shape


def _read_brackets(text: str, depth: int) -> Shape | None:
    for opening in ("(", "["):
        for closing in (")", "]"):
            if _wrapped(text, opening, closing):
                pieces = split_top(text[1:-1], ",;")
                if len(pieces) < 2 or any(not piece.strip() for piece in pieces):
                    return None
                parts = tuple(read_shape(piece, depth) for piece in pieces)
                if any(part.text == _ELLIPSIS for part in parts):
                    return Shape("sequence", text, parts)
                return Shape(opening + closing, text, parts)
    return None


def _read_relation(text: str, depth: int) -> Shape | None:
    if (match := _MEMBER.fullmatch(text)) and _NAME.fullmatch(match[1].strip()):
        return Shape("named", text, (read_shape(match[2], depth),), _bare(match[1]))
    sides = [side.strip() for side in split_top(text, "=")]
    if len(sides) < 2 or not all(sides):
        return _read_approximation(text, depth)
    if len(sides) == 2 and re.fullmatch("[a-zA-Z]", sides[1]) and parse_number(sides[0]) is not None:
        sides.reverse()  # `3 = x`
    named = _NAME.fullmatch(sides[0]) is not None
    if any(_RELATION.search(side) for side in (sides[1:] if named else sides) if not re.fullmatch(r"\|[^|]*\|", side)):
        return None
    parts = tuple(read_shape(side, depth) for side in (sides[1:] if named else sides))
    return Shape("named" if named else "chain", text, parts, _bare(sides[0]) if named else "")


def _read_approximation(text: str, depth: int) -> Shape | None:
    """`1/3 \\approx 0.33` counts as `1/3`, if that is what 0.33 may stand for."""
    sides = [side.strip() for side in re.split(r"\\approx(?![a-zA-Z])", text)]
    if len(sides) != 2 or not sides[1] or "=" in text:
        return None
    if not sides[0] or _NAME.fullmatch(sides[0]):
        return read_shape(sides[1], depth)
    return Shape("approximation", text, (read_shape(sides[0], depth), read_shape(sides[1], depth)))


def _read_pm(text: str, depth: int) -> Shape | None:
    """`a \\pm b` as the two values it stands for."""
    signs = _PM.findall(text)
    if signs.count("pm") != 1 or signs.count("mp") > 1 or _RELATION.search(text):
        return None
    high = _PM.sub(lambda match: "+" if match[1] == "pm" else "-", text)
    low = _PM.sub(lambda match: "-" if match[1] == "pm" else "+", text)
    return Shape("list", text, (read_shape(high.strip().removeprefix("+"), depth), read_shape(low, depth)))


# --- Comparison -----------------------------------------------------------------------------------------------------


def _same(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if gold.kind == "chain" and answer.kind in ("chain", "named"):
        same_text = gold.text.replace(" ", "") == answer.text.replace(" ", "")
        return same_text or formulas(gold.text, answer.text)
    if gold.kind == "chain":
        if _RELATION.search(answer.text):
            return formulas(gold.text, answer.text)
        plain = not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", gold.text))  # `6 \cdot 7 = 42` is 42
        return plain and _same(gold.parts[-1], answer, formulas)
    if gold.kind == "named":
        return _same_named(gold, answer, formulas)
    if answer.kind == "named" and _mentions_itself(answer):
        return False
    if answer.kind == "named" or (answer.kind == "chain" and gold.kind != "chain"):
        return _all_same(gold, answer, formulas)
    if answer.kind == "approximation" and gold.kind != "approximation":
        exact, rounded = answer.parts
        return _same(gold, exact, formulas) and _rounds_to(exact.text, rounded.text, formulas)
    if _is_plural(gold) or _is_plural(answer):
        return _same_plural(gold, answer, formulas)
    if gold.parts and answer.parts and gold.kind not in ("chain", "approximation"):
        if gold.kind != answer.kind or len(gold.parts) != len(answer.parts):
            return False
        return all(_same(left, right, formulas) for left, right in zip(gold.parts, answer.parts, strict=True))
    return same_value(gold.text, answer.text, formulas)


def _mentions_itself(shape: Shape) -> bool:
    """`x = x + 1` names no value."""
    symbol = re.escape(shape.name.partition("(")[0])
    return any(re.search(rf"(?<![a-zA-Z\\]){symbol}(?![a-zA-Z_])", part.text) for part in shape.parts)


def _all_same(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """Whether every side of the answer's chain is the gold value. The first is a name where the chain has one."""
    return all(_same(gold, side, formulas) for side in answer.parts)


def _same_named(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    value = gold.parts[-1]
    if answer.kind == "chain":
        return formulas(gold.text, answer.text)
    if answer.kind != "named":
        return _same(value, answer, formulas)
    if gold.name == answer.name:
        return _all_same(value, answer, formulas)
    left, right = _CALL.fullmatch(gold.name), _CALL.fullmatch(answer.name)
    if left and right and left[1] == right[1]:
        rename = rf"(?<![a-zA-Z\\]){right[2]}(?![a-zA-Z])"
        return all(same_value(value.text, re.sub(rename, left[2], side.text), formulas) for side in answer.parts)
    return len(gold.parts) == len(answer.parts) == 1 and formulas(gold.text, answer.text)


def _is_plural(shape: Shape) -> bool:
    return shape.kind in ("list", "set", "sequence")


def _same_plural(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if _SET_OPERATION.search(gold.text) or _SET_OPERATION.search(answer.text):
        return formulas(gold.text, answer.text)
    if "sequence" in (gold.kind, answer.kind):
        return gold.kind == answer.kind and _same_in_order(gold, answer, formulas)
    if not _is_plural(gold):
        if len(answer.parts) == 1:
            return _same(gold, answer.parts[0], formulas)
        ordered = answer.kind == "list" and gold.kind == "()" and len(gold.parts) == len(answer.parts)
        return ordered and _same_in_order(gold, answer, formulas)
    if not _is_plural(answer):
        if len(gold.parts) == 1:
            return _same(gold.parts[0], answer, formulas)
        listed = answer.kind in ("()", "[]") and gold.kind == "list"
        same = _same_in_order if _names(gold) else _same_members
        return listed and len(answer.parts) == len(gold.parts) and same(gold, answer, formulas)
    if (_names(gold) and not _names(answer)) or (_names(answer) and not _names(gold)):
        return len(gold.parts) == len(answer.parts) and _same_in_order(gold, answer, formulas)
    return _same_members(gold, answer, formulas)


def _names(shape: Shape) -> bool:
    """Whether the parts bear different names, so that leaving the names out leaves an order behind."""
    names = {part.name for part in shape.parts}
    return "" not in names and len(names) == len(shape.parts) > 1


def _same_in_order(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    if len(gold.parts) != len(answer.parts):
        return False
    for left, right in zip(gold.parts, answer.parts, strict=True):
        if _ELLIPSIS in (left.text, right.text):
            if left.text != right.text:
                return False
        elif not _same(left, right, formulas):
            return False
    return True


def _same_members(gold: Shape, answer: Shape, formulas: Formulas) -> bool:
    """As sets: everything in one is in the other."""
    if len(gold.parts) > MAX_PARTS or len(answer.parts) > MAX_PARTS:
        return _same_in_order(gold, answer, formulas)
    unmatched = list(gold.parts)
    matched: list[Shape] = []
    for part in answer.parts:
        for candidates in (unmatched, matched):
            found = next((candidate for candidate in candidates if _same(candidate, part, formulas)), None)
            if found is not None:
                break
        else:
            return False
        if found in unmatched:
            unmatched.remove(found)
            matched.append(found)
    return all(any(_same(left, right, formulas) for right in matched) for left in unmatched)


def _rounds_to(exact: str, rounded: str, formulas: Formulas) -> bool:
    """Whether `rounded` is a decimal less than one unit of its last place from `exact`."""
    value, target = parse_number(rounded), parse_number(exact)
    if value is None:
        return False
    places = 10 ** len(rounded.partition(".")[2].strip())
    if target is not None:
        return abs(value - target) < Fraction(1, places)
    # Algebra can only say what is equal: this is 0 for a difference from -1 to 1 unit of the last place.
    return formulas("0", f"\\lfloor \\frac{{({exact} - ({rounded})) \\cdot {places} + 1}}{{2}} \\rfloor")


# --- Text -----------------------------------------------------------------------------------------------------------


def split_top(text: str, separators: str) -> list[str]:
    """The pieces of `text` between separators that no bracket encloses."""
    pieces, start, depth = [], 0, 0
    environments = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in _OPEN:
            depth += 1
        elif token in _CLOSE:
            depth -= 1
        elif token in ("\\begin", "\\end"):
            environments += 1 if token == "\\begin" else -1
        elif (
            token in separators
            and len(token) == 1
            and depth <= 0
            and environments <= 0
            and not _is_thousands(text, match)
        ):
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _is_thousands(text: str, match: re.Match[str]) -> bool:
    """Whether this comma is inside a number such as 1,234,567."""
    if match[0] != ",":
        return False
    before = re.search(r"(?<![\d.,])\d{1,3}(?:,\d{3})*$", text[: match.start()][-40:])
    return (
        before is not None and re.match(r"\d{3}(?:,\d{3})*(?!\d|,\d)", text[match.end() : match.end() + 40]) is not None
    )


def _wrapped(text: str, opening: str, closing: str) -> bool:
    """Whether the first bracket closes at the very end."""
    if not (text.startswith(opening) and text.endswith(closing)) or len(text) < len(opening) + len(closing):
        return False
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return match.end() == len(text)
    return False


def _bare(text: str) -> str:
    return re.sub(r"[\s{}]", "", text)
