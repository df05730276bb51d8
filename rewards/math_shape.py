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
from functools import lru_cache

from rewards.exact import parse_number
from rewards.math_relation import ascending, intersect, read_range

MAX_DEPTH = 12  # of nested brackets; deeper ones are compared as they are
MAX_PARTS = 100  # of a list; sets of more are compared in order

_OPEN, _CLOSE = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_TOKEN = re.compile(r"\\(?:[a-zA-Z]+|.)|.", re.DOTALL)
_PM = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
RELATION = re.compile(r"\\(?:leq|geq|neq|approx|equiv|sim|in|subset|cong|to|mid)(?![a-zA-Z])|[<>|]")
_MEMBER = re.compile(r"^(.{1,30}?)\s*\\in(?![a-zA-Z])\s*(.+)$", re.DOTALL)
_SET_BUILDER = re.compile(
    r"\\\{\s*([a-z])\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:\\mid|\||:)\s*(.*)\\\}", re.DOTALL
)
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\{(cases|array|aligned|gathered|align\*?)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL
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
ELLIPSIS = "\\ldots"


@dataclass(frozen=True, slots=True)
class Shape:
    """`kind` is value, named, chain, approximation, list, set, sequence, tuple with its brackets (`()`, `(]`, ...),
    matrix RxC, or for conditions either ("or") and both ("and").
    """

    kind: str
    text: str
    parts: tuple["Shape", ...] = ()
    name: str = ""


def read_shape(text: str, depth: int = 0) -> Shape:
    """The structure of a normalised answer. Anything not understood is a value."""
    return _read(text.strip(), min(depth, MAX_DEPTH))


@lru_cache(maxsize=256)
def _read(text: str, depth: int) -> Shape:
    if depth >= MAX_DEPTH or not text:
        return Shape("value", text)
    readers = (
        _read_system, _read_matrix, _read_conditions, _read_collection, _read_brackets, _read_relation, _read_pm,
    )  # fmt: skip
    for reader in readers:
        shape = reader(text, depth + 1)
        if shape is not None:
            return shape
    return Shape("value", ascending(text) or text)


def _read_system(text: str, depth: int) -> Shape | None:
    """`\\begin{cases} x=2 \\\\ y=3 \\end{cases}` as `x=2, y=3`."""
    match = _SYSTEM.fullmatch(text)
    if match is None or "\\begin" in match[2] or (match[1] in ("cases", "array") and "&" in match[2]):
        return None
    rows = [row.replace("&", "").strip(" ,;") for row in match[2].split("\\\\") if row.strip()]
    if not all("=" in row for row in rows):
        return None
    return _collection("list", text, [read_shape(row, depth) for row in rows])


def _read_conditions(text: str, depth: int) -> Shape | None:
    pieces = re.split(r"\\lor(?![a-zA-Z])", text)
    if len(pieces) > 1 and all(RELATION.search(piece) or "=" in piece for piece in pieces):
        return Shape("either", text, tuple(read_shape(piece, depth) for piece in pieces))
    pieces = re.split(r"\\land(?![a-zA-Z])", text)
    if len(pieces) == 1 or not all(RELATION.search(piece) or "=" in piece for piece in pieces):
        return None
    ranges = [found for piece in pieces if (found := read_range(piece))]
    if len(ranges) == len(pieces) and (both := intersect(ranges)):
        return read_shape(both.chain, depth)
    return Shape("both", text, tuple(read_shape(piece, depth) for piece in pieces))


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
    return Shape("sequence" if any(part.text == ELLIPSIS for part in flat) else kind, text, tuple(flat))


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
                if any(part.text == ELLIPSIS for part in parts):
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
    if any(RELATION.search(side) for side in (sides[1:] if named else sides) if not re.fullmatch(r"\|[^|]*\|", side)):
        return None
    parts = tuple(read_shape(side, depth) for side in (sides[1:] if named else sides))
    if named and sides[0].startswith("(") and (each := _name_each(sides[0], parts)):
        return Shape("()", text, each)
    return Shape("named" if named else "chain", text, parts, _bare(sides[0]) if named else "")


def _name_each(names: str, parts: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """`(x, y) = (1, 2)` as `x = 1` and `y = 2`; () where the sides do not match."""
    listed = [name.strip() for name in names[1:-1].split(",")]
    if len(parts) != 1 or parts[0].kind != "()" or len(listed) != len(parts[0].parts):
        return ()
    pairs = zip(listed, parts[0].parts, strict=True)
    return tuple(Shape("named", f"{name} = {part.text}", (part,), name) for name, part in pairs)


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
    if signs.count("pm") != 1 or signs.count("mp") > 1 or RELATION.search(text):
        return None
    high = _PM.sub(lambda match: "+" if match[1] == "pm" else "-", text)
    low = _PM.sub(lambda match: "-" if match[1] == "pm" else "+", text)
    return Shape("list", text, (read_shape(high.strip().removeprefix("+"), depth), read_shape(low, depth)))


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
