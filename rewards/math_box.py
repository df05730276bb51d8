"""The boxes of a text, and what stands around them.

A box with a sign, an operator or a function around it is a part of a formula, and no answer. Units, percent and further
sides of an equation after a box belong to its answer: `\\boxed{42}\\%` is 42 %, and `\\boxed{42} = 43` is wrong.
"""

import re
from dataclasses import dataclass

from rewards.exact import widen

_BOX_OR_BRACE = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s+(?P<bare>-?[0-9A-Za-z][0-9A-Za-z,./]*[0-9A-Za-z]|-?[0-9A-Za-z])(?![\\{^_]))|\\.|[{}]",
    re.DOTALL,
)
_WINDOW = 300  # characters looked at before and after a box
_MAX_WRAPPERS = 8  # brackets and fonts around a box

_FONTS = (
    "text|textbf|textit|textrm|textnormal|textsf|emph|mbox|hbox|mathbf|mathrm|mathit|mathsf|boldsymbol|bm|underline|"
    "color|textcolor|colorbox|fcolorbox|ensuremath|boxed|fbox|large|Large|LARGE|huge|Huge|displaystyle|begin"
)
_TEXT = r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|operatorname|emph)\s*\{([^{}]*)\}"
_WRAPPING = re.compile(rf"\\(?:{_FONTS})\s*")
_OPENED = re.compile(r"(?:(\\[a-zA-Z]+)\s*|([\^_]|\d)\s*)$")
_SPACE = (
    r"[ \t\n~&]|\\[,;:! ]|\\(?:q?quad|left|right|displaystyle|bf|rm|large|Large|LARGE|huge|Huge|boldmath)(?![a-zA-Z])"
    r"|\*\*|\{\}|\\(?:color|hspace|vspace)\*?\{[^{}]*\}"
)
_SPACES_BEFORE = re.compile(rf"(?:{_SPACE})+$")
_SPACES = re.compile(rf"(?:{_SPACE})*")
_PAIRS = (("\\{", "\\}"), ("(", ")"), ("[", "]"), ("{", "}"))

_UNFINISHED = r"(?:(?<=---)|(?<=\*\*\*)|(?<![-+*/^_\s]))\s*"  # no line ends where a sign waits for its operand
_ROW_END = re.compile(_UNFINISHED + r"\\\\(?:\[[^\]]*\])?")
_LINE_END = re.compile(rf"{_UNFINISHED}(?:\n|\\\\(?:\[[^\]]*\])?)")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_DELIMITER = re.compile(r"(?:\$\$?|\\[\[(])$")
_DASH = re.compile(r"(?:[A-Za-z]{2}|[:.)*\"”\]一-鿿])\s+-{1,3}\s+$")
_TAKEN_BACK = re.compile(r"(?:\b(?:minus|negative|not|neither|nor)|n't|n’t|负|不是|并非|不等于)$", re.IGNORECASE)
_LINKS = (
    "approx|equiv|cong|simeq|doteq|implies|impliedby|iff|to|rightarrow|longrightarrow|Rightarrow|Longrightarrow|"
    "Leftrightarrow|Longleftrightarrow|leadsto|therefore|because|blacksquare|square|qed|checkmark|bullet|item|par|"
    "noindent|newline|centering|hline|Box"
)
_FREE_BEFORE = re.compile(
    rf"(?:^|[=:,;?!%#`\"'。，；：、？！“”‘’—…•]|(?<!\d)\.|\\\\(?:\[[^\]]*\])?|\\[\])]|\\\$|<[a-zA-Z/][^<>]*>|^>+|^\*"
    rf"|\\(?:{_LINKS})|\\(?:begin|end)\s*\{{[^{{}}]*\}}(?:\s*\{{[lcr|]*\}})?|^\(?\w{{1,4}}[).]|[^\x00-\x7f±×÷·√∓≠≤≥¬∑∏∫])$"
)
_ENDS = re.compile(
    rf"$|\$|\\[\])]|\\\\|\\end(?![a-zA-Z])|[,;:?\"'。，；：、？！“”‘’—…|`]|\.(?!\d)|<(?=[/a-zA-Z|｜])|\*(?=$|[\s.,;:])"
    rf"|\\(?:{_LINKS}|tag|label)(?![a-zA-Z])|[一-鿿]"
)
_SUFFIX = re.compile(
    rf"\\?%|\\pmod\s*\{{[^{{}}]*\}}|\^\s*\{{?\s*\\circ(?![a-zA-Z])\s*\}}?|°|(?:/\s*)?{_TEXT}(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?|[²³]"
)
_SIDE = re.compile(r"=|\\approx(?![a-zA-Z])")
_SIDE_END = re.compile(r"\$|\\[\])]|\\\\|\\end(?![a-zA-Z])|[,;.](?=\s|$)|。|，|$")
_PROSE = re.compile(r"\s[A-Za-z]{2}.*", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+(?:\s*/\s*[A-Za-z]+)?")


@dataclass(frozen=True, slots=True)
class Box:
    text: str
    start: int  # of the command
    end: int  # after the closing brace
    operand: bool  # of a command around it: `\\frac{\\boxed{1}}{2}`


def locate_boxes(text: str) -> tuple[list[Box], bool]:
    """The boxes in order, and whether one is left open. Linear in the text.

    Of boxes inside boxes the innermost count. Escaped braces (`\\{`) are text. `\\fbox` is a box, and so is the word
    after a `\\boxed` without braces.
    """
    boxes: list[Box] = []
    stack: list[tuple[bool, int, int, int, bool]] = []  # a box?, its start and content's start, boxes known, operand?
    closed = (-1, False)  # where the last group ended, and whether its command makes operands
    for match in _BOX_OR_BRACE.finditer(text):
        token = match[0]
        within = bool(stack) and stack[-1][4]
        if token == "}":
            if stack:
                is_box, start, content, known, within = stack.pop()
                if is_box and len(boxes) == known:
                    boxes.append(Box(text[content : match.start()], start, match.end(), within))
                closed = (match.end(), within)
        elif match["bare"]:
            boxes.append(Box(match["bare"], match.start(), match.end(), within))
        elif token[-1] == "{" and token != "\\{":
            is_box = token != "{"
            argument = not is_box and (_makes_operand(text, match.start()) or closed == (match.start(), True))
            stack.append((is_box, match.start(), match.end(), len(boxes), within or argument))
    return boxes, any(is_box for is_box, *_ in stack)


def read_around(text: str, start: int, end: int) -> str | None:
    """What the formula adds after a box (or several) from `start` to `end`: units, percent, more sides of an equation.

    None where the box is a part of a formula. What is between maths delimiters is a formula; in prose, words around
    a box do not matter.
    """
    maths = _in_maths(text, start)
    before, after = _nearby(text, start, end, maths)
    before, after = _unwrap(before, after)
    return _suffix(after, maths) if _is_free_before(before, maths) else None


def _makes_operand(text: str, brace: int) -> bool:
    """Whether the group that opens here is the argument of a command that changes what is in it."""
    opened = _OPENED.search(text, max(0, brace - 30), brace)
    return opened is not None and (opened[1] is None or _WRAPPING.fullmatch(opened[1]) is None)


def _in_maths(text: str, position: int) -> bool:
    paragraph = _BLANK_LINE.split(text[max(0, position - 10 * _WINDOW) : position])[-1].replace("$$", "$")
    if (paragraph.count("$") - paragraph.count("\\$")) % 2:
        return True
    opened = max(paragraph.rfind(opening) for opening in ("\\[", "\\(", "\\begin{"))
    return opened > max(paragraph.rfind(closing) for closing in ("\\]", "\\)", "\\end{"))


def _nearby(text: str, start: int, end: int, maths: bool) -> tuple[str, str]:
    """The text around, up to a blank line or the end of a row, in prose up to the end of the line."""
    before = _BLANK_LINE.split(text[max(0, start - _WINDOW) : start])[-1]
    after = _BLANK_LINE.split(text[end : end + _WINDOW])[0]
    end_of_line = _ROW_END if maths else _LINE_END
    return end_of_line.split(before)[-1], widen(after if maths else after.partition("\n")[0])


def _unwrap(before: str, after: str) -> tuple[str, str]:
    """Without the brackets and fonts that hold nothing but the box."""
    for _ in range(_MAX_WRAPPERS):
        inner, rest = _SPACES_BEFORE.sub("", before), after[_SPACES.match(after).end() :]  # type: ignore[union-attr]
        for opening, closing in _PAIRS:
            if inner.endswith(opening) and rest.startswith(closing):
                before, after = inner.removesuffix(opening), rest.removeprefix(closing)
                if opening == "{":
                    before = re.sub(rf"\\(?:{_FONTS})\s*(?:\{{[^{{}}]*\}}\s*)?$", "", before)
                break
        else:
            break
    return before, after


def _is_free_before(before: str, maths: bool) -> bool:
    before = widen(before)
    if not maths and _DASH.search(before):
        return True
    core = _SPACES_BEFORE.sub("", before)
    spaced = core != before
    if delimiter := _DELIMITER.search(core):
        return re.search(r"[-+/^*]\Z", core[: delimiter.start()]) is None or core.endswith("**" + delimiter[0])
    if _TAKEN_BACK.search(core):
        return False
    if words := re.search(_TEXT + "$", core):
        return _is_free_before(words[1], maths=False)
    if letters := re.search(r"[A-Za-z]+$", core):
        if core[: letters.start()].endswith("\\"):
            return _FREE_BEFORE.search(core) is not None
        shortest = 2 if not maths or spaced else 3  # in a formula, `ab` before the box is a product
        return len(letters[0]) >= shortest or (spaced and not maths)
    if spaced and core.endswith("."):
        return True
    if not maths and spaced and core[-1:] in (*")]|-", ""):
        return not core.endswith("-") or core.endswith("--")
    if not maths and core[-1:] in ("(", "["):
        return len(core) == 1 or core[-2].isspace()
    return _FREE_BEFORE.search(core) is not None


def _suffix(after: str, maths: bool) -> str | None:
    suffix, position = "", 0
    while True:
        space = _SPACES.match(after, position)
        spaced = space is not None and space.end() > position
        position = space.end() if space else position
        rest = after[position:]
        if found := re.match(r"\$+(?=\s?\\?%|[\^/°])|\\[)\]](?=\s?\\?%|[\^/°])|[)\]}]|\\\}", rest):
            position += found.end()
        elif found := _SUFFIX.match(rest):
            suffix += found[0]
            position += found.end()
        elif found := _SIDE.match(rest):
            side = rest[: _SIDE_END.search(rest).start()]  # type: ignore[union-attr]
            return suffix + (side if maths else _PROSE.sub("", side))
        elif _ENDS.match(rest) or (not maths and _ends_prose(rest, spaced)):
            return suffix
        elif found := _LETTERS.match(rest):
            suffix += f" {found[0]}" if spaced else found[0]
            position += found.end()
        else:
            return None


def _ends_prose(rest: str, spaced: bool) -> bool:
    """Whether what follows a box outside of formulas is no part of one: a word, a remark in brackets, a dash, `!`."""
    if spaced:
        return re.match(r"[A-Za-z]{2}|[aI]\s|\(|\[|-{1,3}\s+[A-Za-z]{2}|--", rest) is not None
    return re.match(r"!+(?=\s|$)", rest) is not None
