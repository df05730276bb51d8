"""One spelling for many: rewrites a final answer so that equal answers look alike. Text in, text out, no algebra."""

import re

from rewards.exact import widen

MAX_ANSWER_CHARS = 1000  # longer ones are never equal to a shorter gold answer, only slow to parse
MAX_PRODUCT_LETTERS = 4  # a longer word is no product of letters
MAX_SPELLED_CHARS = 8000  # longer ones are not brought to one spelling

_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\leq ", "≥": r"\geq ",
    "≠": r"\neq ", "≈": r"\approx ", "∞": r"\infty ", "π": r"\pi ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "°": r"^\circ ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ",
    "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ", "∛": r"\sqrt[3]", "ℤ": r"\mathbb{Z}",
    "¢": r"\text{ cents}", "…": r"\ldots ", "，": ",", "、": ",", "；": ";",
    "∧": r"\land ", "∨": r"\lor ", "→": r"\to ", "∥": r"\parallel ",
}  # fmt: skip
_WORDS_IN_TEX = r"\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|operatorname)"
_FRAMES = r"aligned|alignedat|align\*?|gathered|gather\*?|split|equation\*?|displaymath|math"
_CURRENCIES = {
    r"\$": "dollars", r"\textdollar": "dollars", "€": "euros", r"\euro": "euros", "£": "pounds", r"\pounds": "pounds",
    "₹": "rupees",
}  # fmt: skip
_SIGN = r"\\\$|[€£₹]|\\(?:textdollar|euro|pounds)(?![a-zA-Z])"
# A sign before an amount, unless the words after it name the currency, or the amount is a factor of more.
_MONEY = (
    rf"(?P<sign>{_SIGN})\s*(?P<amount>-?(?:\d+(?:,\d{{3}})*(?:\.\d+)?|\.\d+|\\frac\s*\{{\d+\}}\s*\{{\d+\}}))(?![\d.])"
    r"(?P<magnitude>\s*(?:\\text\s*\{\s*)?(?:hundred|thousand|million|billion|trillion)s?\b\s*\}?)?"
    r"(?!\s*(?:\\[a-z]+\s*\{)?[^{}\\,;]*\b(?:dollar|euro|pound|rupee|cent|usd|eur))"
    r"(?=\s*(?:$|[,;:)\]]|\\(?:text|mbox|mathrm|pm)|/\s*[a-z]|per\b|and\b|or\b|each\b|a\b))"
)
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?<!\\)\\\s*$", ""),
        (r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]", r"\\\\"),
        (r"\\(?:left|right|displaystyle|textstyle|[bB]ig+[lr]?|limits)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\\varnothing(?![a-zA-Z])", r"\\emptyset"),
        (r"\\ge(?:q?slant|q)?(?![a-zA-Z])|>=", r"\\geq "),
        (r"\\le(?:q?slant|q)?(?![a-zA-Z])|<=", r"\\leq "),
        (r"\\ne(?![a-zA-Z])|!=", r"\\neq "),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\(?:simeq|doteq)(?![a-zA-Z])", r"\\approx "),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\(?:lvert|rvert|vert)(?![a-zA-Z])", "|"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\[cl]?dots[cbmio]?(?![a-zA-Z])|\.{3}", r"\\ldots "),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))|\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"\\(?:long)?rightarrow(?![a-zA-Z])", r"\\to "),
        (r"\{\s*:\s*\}", ":"),
        (r",\s*\\!\s*|\{,\}|(?<=\d)\\[,;:]\s*(?=,?\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[!;,: ]|~|\\q?quad(?![a-zA-Z])|\\[hv]space\s*\{[^{}]*\}", " "),
        (r"\\(?:large|Large|small|bf|checkmark|(?:text)?color\s*\{[a-zA-Z]+\})(?![a-zA-Z])", ""),
        (r"\\rm\s*\{([^{}]*)\}|\{\s*\\rm(?![a-zA-Z])([^{}]*)\}", r"\\mathrm{\1\2}"),
        (rf"\\begin\{{({_FRAMES})\}}((?:(?!\\\\|\\begin).)*)\\end\{{\1\}}", lambda m: m[2].replace("&", "")),
        (r"\\(?:mathbf|bm|boldsymbol|mathit|mathsf|underline)\s*(?:\{([^{}]*)\}|\s([A-Za-z0-9]))", r"\1\2"),
        (r"\\(vec|hat|bar|overline)\s+([A-Za-z])", r"\\\1{\2}"),
        (rf"(?<=\d)\s*+({_WORDS_IN_TEX}\s*\{{\s*)?and (?:a|one)[ -]half\b", r"\\frac{1}{2}\1"),
        (r"(?s)^.*(?:[<>]|\\[lg]eq).*$", lambda m: _join_relations(m[0])),
        (rf",?\s*{_WORDS_IN_TEX}\s*\{{\s*,?\s*(?:or|and|或|和)\s*\}}", ","),
        (r"(?<=[a-zA-Z\d])\\mathrm\s*\{\s*([a-z])\s*\}", r" \1"),
        (r"\\mathrm\s*\{\s*([a-z])\s*\}", r"\1"),
        (r",?\s+(?:or|and)\s+|或者?|和", ","),
        (rf"(?:{_WORDS_IN_TEX}\s*\{{\s*)?\b(?:percent|pct|per cent)\b(?:\s*\}})?", r"\\%"),
        (r"(?<!\\)%", r"\\%"),
        (r"(?:√\s*|(?<![\\a-zA-Z])sqrt)\(([^()]*)\)|√\s*(\w+)", r"\\sqrt{\1\2}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"\*\*\s*(-?\w+)", r"^{\1}"),
        (r"(?<![\\a-zA-Z_^{\d])(?<!\d )(\d{1,3}(?: \d{3})+)(?![\d ])", lambda m: m[1].replace(" ", "")),
        (_MONEY, lambda m: f"{m['amount']}{m['magnitude'] or ''}\\text{{ {_CURRENCIES[m['sign']]}}}"),
        (rf"(?<=\d)\s*({_SIGN})(?!\s*\d)", lambda m: f"\\text{{ {_CURRENCIES[m[1]]}}}"),
        (rf"(?:{_SIGN}|¥)", ""),
        (r"(?<=[^\s,;=({\[<>&])\s*\+\s*-\s*", " - "),
        (r"(?:(?<=^)|(?<=[(,=]))\s*-\s*-\s*(?=\d)", ""),
        (r"^\s*Eq\((.*),([^,()]*)\)\s*$", r"\1 =\2"),  # how sympy prints an equation
        (r"^\s*\]([^\[\]]*,[^\[\]]*)\[\s*$", r"(\1)"),  # ]a, b[ is the open interval
        (r"\s+", " "),
    ]
]
_AND, _OR = (
    re.compile(rf",?\s*{_WORDS_IN_TEX}\s*\{{\s*,?\s*(?:{word})\s*\}}|,?\s+(?:{word})\s+|\\(?:{sign})(?![a-zA-Z])|{han}")
    for word, sign, han in (("and", "land|wedge", "且"), ("or", "lor|vee", "或者?"))
)
_RELATED = re.compile(r"[<>=]|\\(?:leq|geq|neq|in)(?![a-zA-Z])")
_INVISIBLE = " \t\r\n\u200b\u200c\u200d\u2060\ufeff"  # white space and marks of no width
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_BOLD = re.compile(r"^\*\*(.*)\*\*$", re.DOTALL)
_ALL_TEXT = re.compile(rf"{_WORDS_IN_TEX}\s*\{{([^{{}}]*)\}}")
_SAID: dict[str, str] = dict.fromkeys(
    ("all real numbers", "all reals", "the set of all real numbers", "全体实数"), r"\mathbb{R}"
)
_SAID |= dict.fromkeys(("no solution", "no solutions", "the empty set", "empty set", "无解", "空集"), r"\emptyset")
_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*|[Nn][Oo]|[一-鿿]+")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
_CHOICE = re.compile(r"\(([A-Z])\)|([A-H])")
_LABELLED = re.compile(rf"{_WORDS_IN_TEX}\s*\{{\s*\(?([A-H])[).]*\s*\}}\s*(\S.*)", re.DOTALL)
_CHOSEN = re.compile(r"(?:option |choice )?(?:\(([A-Za-z])\)|([A-Za-z]))[.:)]?(?P<rest>(?<=[.:)]).*)?", re.IGNORECASE)
# Another option beside the chosen one: a lone letter that is neither "I", nor an article, nor a part of a formula.
_OTHER_OPTION = re.compile(
    r"(?<![A-Za-z\\])[A-HJ-Z](?![A-Za-z])"
    r"|(?<![A-Za-z\\\d=+*/^_{-])(?<![=+*/^-]\s)[a-h](?![A-Za-z\d=+*/^_}-])(?!\s+[=+*/^-])(?!(?<=a)\s+[a-z]{3})"
    r"|\bor\s+\(?[a-h](?![A-Za-z])"
)
_TAKEN_BACK = re.compile(
    r"^[\s.:)]*not(?! enough| possible| given| listed)|\b(?:is|are|was|it's|that's)\s+not\b|n't\b|n’t\b"
    r"|\bnot\s+(?:sure|certain|right|correct|true|it)\b|\b(?:wrong|incorrect|false|unsure)\b"
    r"|\bcannot (?:tell|say|decide)\b",
    re.IGNORECASE,
)
# A congruence; `42 \bmod 5` without brackets is the remainder 2.
_MODULUS = re.compile(
    r"\s*(?:\\pmod(?![a-z])\s*\{?[^{}]*\}?|\(\s*(?:\\text\s*\{\s*mod\s*\}|\\?[pb]?mod(?![a-z]))\s*\{?[^{}()]*\}?\s*\))$"
)
_TWO_KINDS_OF_DIGITS = re.compile(r"[0-9][０-９]|[０-９][0-9]")


def normalise(text: str) -> str:
    """One spelling for the same formula: spacing, currency signs, thousands separators, full-width characters."""
    text = text.strip(_INVISIBLE)
    if len(text) > MAX_SPELLED_CHARS:
        return text
    if bold := _BOLD.match(text):
        text = bold[1]
    text = _drop_delimiters(re.sub(r"\s{2,}", " ", widen(text)))
    for symbol, latex in _SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = _SUPERSCRIPTS.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".。,;").strip()
    if braced := _IN_BRACES.fullmatch(text):
        text = braced[1].strip()
    if words := _ALL_TEXT.fullmatch(text):
        text = words[1].strip().removeprefix("(").removesuffix(")")
    return _SAID.get(text.lower()) or _without_parentheses(text)


def _drop_delimiters(text: str) -> str:
    """Without the dollars of formulas. One that stands alone before a number is money."""
    alone = re.match(r"\s*-?\s*\$(?=\s*[\d.])", text) if len(re.findall(r"(?<!\\)\$", text)) % 2 else None
    text = re.sub(r"(?<!\\)\$", "", text)
    return f"\\${text}" if alone else text


def _join_relations(text: str) -> str:
    """`x<1 \\text{ or } x>2` with `\\lor`, and `\\land` for "and", which between relations are not the same."""
    for pattern, sign in ((_OR, "\\lor"), (_AND, "\\land")):
        pieces = pattern.split(text)
        if len(pieces) > 1 and all(_RELATED.search(piece) for piece in pieces):
            text = f" {sign} ".join(piece.strip(" ,") for piece in pieces)
    return text


def is_broken(gold: str) -> bool:
    """Whether a normalised gold answer is no text that anybody could mean: open braces, or punctuation alone."""
    braces = re.findall(r"(?<!\\)(?:\\\\)*([{}])", gold)
    return braces.count("{") != braces.count("}") or re.search(r"[\w\\]", gold) is None


def same_text(gold: str, answer: str) -> bool:
    """Whether two normalised texts differ in nothing but spaces and braces."""
    left, right = (re.sub(r"[\s{}]", "", re.sub(r"\\mid(?![a-zA-Z])", "|", text)) for text in (gold, answer))
    return left == right


def read_words(text: str) -> str | None:
    """A normalised answer in words (`no solution`, `正确`), in lower case; None for formulas.

    As formulas, `listen` and `silent` would be the same product of letters.
    """
    return text.lower() if _WORDS.fullmatch(text) else None


def same_letters(words: str, answer: str) -> bool:
    """Whether a short word is a product that the answer writes letter by letter: `abc` and `c \\cdot a \\cdot b`."""
    product = re.fullmatch(r"[A-Za-z](?:(?:\s*\\cdot\s*|\s*\*\s*|\s+)[A-Za-z])+", answer)
    letters = re.findall("(?<![A-Za-z\\\\])[A-Za-z](?![A-Za-z])", answer)
    return product is not None and len(words) <= MAX_PRODUCT_LETTERS and sorted(letters) == sorted(words)


def read_number_word(text: str) -> str | None:
    """Digits of a number in words: English and Chinese, 0 to 99; None for all else."""
    tens, _, ones = text.strip().lower().replace("-", " ").partition(" ")
    if tens in _SMALL and not ones:
        return str(_SMALL[tens])
    if tens in _TENS:
        ones_value = _SMALL.get(ones.strip(), 0)
        return str(_TENS[tens] + ones_value) if not ones or 0 < ones_value < 10 else None
    if match := _CHINESE_NUMBER.fullmatch(text.strip()):
        tens_sign, ten, ones_sign = match.groups()
        value = _CHINESE[tens_sign] if tens_sign else 1
        return str((10 * value if ten else 0) + (_CHINESE[ones_sign] if ones_sign else 0))
    return str(_CHINESE[text.strip()]) if text.strip() in _CHINESE else None


_LETTER_IN_FONT = re.compile(rf"(?:{_WORDS_IN_TEX}|\\(?:mathbf|mathit|mathsf|boldsymbol|bm))?\s*\{{([^{{}}]*)\}}")
_FONT_SWITCH = re.compile(r"\\(?:bf|rm|it|sf|bfseries)(?![a-zA-Z])\s*")


def is_choice(gold: str) -> bool:
    """Whether a normalised gold answer is one option letter: `C`, `(C)`. Later letters (`N`) are variables."""
    return _CHOICE.fullmatch(gold) is not None


def read_labelled(gold: str) -> tuple[str, str] | None:
    """Letter and content of a normalised gold answer such as `\\textbf{(B)} 12`."""
    match = _LABELLED.fullmatch(gold)
    return (match[1], match[2].strip()) if match else None


def read_chosen(answer: str) -> str | None:
    """The one option an answer names: `C`, `(c)`, `C.`, `(C) 42`, `option C`; None for several, or one taken back."""
    answer = _LETTER_IN_FONT.sub(r"\1", _FONT_SWITCH.sub("", answer)).strip()
    match = _CHOSEN.fullmatch(answer)
    rest = (match and match["rest"]) or ""
    if match is None or _OTHER_OPTION.search(rest) or _TAKEN_BACK.search(rest):
        return None
    return (match[1] or match[2]).upper()


def drop_modulus(text: str) -> str:
    """`42 \\pmod{100}` as `42`."""
    return _MODULUS.sub("", text)


def mixes_digits(text: str) -> bool:
    """Whether one number has ASCII and full-width digits, which nobody writes by accident."""
    return _TWO_KINDS_OF_DIGITS.search(text) is not None


def _without_parentheses(text: str) -> str:
    """`((42))` as `42`; linear, however many there are."""
    core = text.lstrip("(")
    opened = len(text) - len(core)
    inner = core.rstrip(")")
    if not opened or len(core) - len(inner) != opened or re.search(r"[()\[\],;]", inner):
        return text
    return inner.strip()


_UNDER_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_SMALL = {word: value for value, word in enumerate(_UNDER_TWENTY.split())}
_DECADES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_DECADES.split(), start=2)}
_CHINESE = {sign: value for value, sign in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_CHINESE_NUMBER = re.compile("([二三四五六七八九])?(十)([一二三四五六七八九])?")
