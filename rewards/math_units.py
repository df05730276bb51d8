"""Which words after a number are a unit, and which units are the same. Nothing is converted.

    " \\text{ km/h}", "kilometers per hour", "km h^{-1}"  ->  (("h", -1), ("km", 1))

Only known words are units: measures with their SI prefixes, money, and what is commonly counted. A word that is none
may be a second answer ("5 point five", "3 halves"), so whoever finds one must not skip it. Nor are two things counted
one unit ("3 women men").
"""

import re
from collections import Counter
from collections.abc import Collection

from rewards.math_text import read_number_word

Unit = tuple[tuple[str, int], ...]  # (name, exponent), sorted; () is no unit

_PREFIXES = {"kilo": "k", "mega": "M", "giga": "G", "centi": "c", "milli": "m", "micro": "u", "nano": "n", "deci": "d"}
_SCALED = {
    "m": "meter metre", "g": "gram gramme", "L": "liter litre", "s": "second sec", "W": "watt", "J": "joule",
    "Pa": "pascal", "Hz": "hertz", "V": "volt", "A": "ampere amp", "N": "newton", "mol": "mole", "B": "byte",
    "cal": "calorie", "eV": "", "Wh": "", "ohm": "",
}  # fmt: skip
_OTHER = {
    "in": "inch", "ft": "foot feet", "mi": "mile", "yd": "yard", "lb": "pound", "oz": "ounce", "gal": "gallon",
    "qt": "quart", "pt": "pint", "cup": "", "tbsp": "tablespoon", "tsp": "teaspoon", "acre": "", "ha": "hectare",
    "ton": "tonne", "min": "minute", "h": "hr hour 小时 时", "d": "day 天", "week": "wk 周", "month": "月",
    "year": "yr 年", "decade": "", "century": "", "dollar": "usd", "cent": "", "euro": "eur", "yuan": "rmb 元",
    "yen": "", "rupee": "", "peso": "", "franc": "", "penny": "pence", "nickel": "", "dime": "",
    "degree": "deg 度", "rad": "radian", "celsius": "", "fahrenheit": "", "K": "kelvin", "atm": "", "bar": "",
    "knot": "", "am": "", "pm": "", "unit": "", "bit": "",
    "cm": "厘米 公分", "mm": "毫米", "m": "米", "km": "千米 公里", "g": "克", "kg": "千克 公斤", "t": "吨",
    "L": "升", "mL": "毫升", "s": "秒", "分钟": "", "分": "", "角": "",
    "个": "人 本 只 头 条 张 块 岁 次 种 名 位 件 箱 辆 棵 朵 支 台",
}  # fmt: skip
_COUNTED = """
animal apple arrangement ball bird boat book bottle box boy brick bus candy car card cat chair chicken child children
choice coin combination cookie cow customer dog edge egg element employee face family fish flower friend game girl guest
horse house item kid letter marble man men member minute orange page passenger pen pencil people permutation person
piece player point possibility rabbit room seat sheep shirt side sock solution star step sticker student subset table
teacher team ticket toy tree triangle truck value vertex vertices vote way win woman women word worker
"""
_MONEY = "dollar cent euro yuan yen rupee peso franc penny nickel dime 角"
_COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "mpg": "mi/gal"}
_POWERS = {"square": 2, "sq": 2, "平方": 2, "cubic": 3, "cu": 3, "立方": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}
# Words that change what a number says: no unit, not even where the gold answer has them.
_TELLING_WORDS = """
or and not maybe perhaps about approximately roughly if is are otherwise to nor but except minus plus times mod
modulo none either both than less more dozen over under with from negative sin cos tan log ln exp point half halves
third quarter fourth fifth sixth seventh eighth ninth tenth hundredth thousandth hundred thousand million billion
trillion twice double triple factorial instead versus
"""
_TELLING = frozenset(_TELLING_WORDS.split())


def _build() -> dict[str, str]:
    units = {word: word for word in _COUNTED.split()}
    for short, names in _SCALED.items():
        for prefix, letter in {"": "", **_PREFIXES}.items():
            units |= {prefix + name: letter + short for name in names.split()} | {letter + short: letter + short}
    for short, names in _OTHER.items():
        units |= dict.fromkeys(names.split(), short) | {short: short}
    return units


_UNITS = _build()
_NOUNS = frozenset(f"{_COUNTED} {_MONEY} am pm unit 个".split())  # one thing each: no product of them is a unit
_SHORT = frozenset(_UNITS.values())
_ANY_CASE = {name.lower(): short for name, short in reversed(_UNITS.items()) if len(name) > 1}
_HAN = "|".join(sorted((name for name in {**_UNITS, **_POWERS, "每": ""} if name > "一"), key=len, reverse=True))
_TOKEN = re.compile(
    rf"(?P<word>[A-Za-z]+|{_HAN})|(?P<power>\^-?[1-9]|(?<=[A-Za-z一-鿿])[23](?!\d)|[²³])|(?P<per>/)"
    r"|\\cdot(?![a-zA-Z])|[\s()·.*-]"
)
_POWER = re.compile(r"\^\s*(?:\{\s*(-?\d)\s*\}|(-?\d))")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textnormal|textrm|mbox|mathrm|rm|operatorname)(?![a-zA-Z])|[{}]")
_HALF_DAY = re.compile(r"\b([ap])\.\s?m\b\.?", re.IGNORECASE)


def parse_unit(text: str, counted: Collection[str] = (), symbols: bool = False) -> Unit | None:
    """The unit that `text` is, in TeX or plain; () where it says nothing, None where it has any other word or sign.

    `counted` are more words that count as units, in the singular. With `symbols`, only measures as they are spelt.
    """
    text = _WRAPPER.sub(" ", _POWER.sub(r"^\1\2", _HALF_DAY.sub(r"\1m", text)))
    powers: Counter[str] = Counter()
    position, sign, ahead, last = 0, 1, 1, ""
    nouns: dict[int, str] = {}
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        word, power = match["word"], match["power"]
        if match["per"] or word in ("per", "每"):
            sign, last = -1, ""
        elif word in _POWERS:
            ahead = _POWERS[word]
        elif power or word in _POWERS_AFTER:
            exponent = _POWERS_AFTER[word] if word else int(power.strip("^").translate({178: "2", 179: "3"}))
            if not last:
                return None
            powers[last] += sign * (exponent - 1)
            last = ""
        elif word and word != "of":
            names = _named(word, counted, symbols)
            if not names:
                return None
            noun = names[0][0] if _singulars(word.lower())[-1] not in counted else ""
            if noun in _NOUNS and nouns.setdefault(sign, noun) != noun:
                return None
            for name, exponent in names:
                powers[name] += sign * exponent * ahead
            last, ahead = names[-1][0], 1
    return None if ahead > 1 else tuple(sorted((name, power) for name, power in powers.items() if power))


def same_unit(left: Unit, right: Unit) -> bool:
    """Whether two units agree; one may be missing, and so may "degree" where the scale is said."""
    if any(name in ("celsius", "fahrenheit") for name, _ in left + right):
        left, right = (tuple(part for part in unit if part[0] != "degree") for unit in (left, right))
    return not left or not right or left == right


def counted_words(text: str) -> frozenset[str]:
    """The words of a gold answer or a question that an answer may have beside its number, too.

    Letters glued to a number are no word: `2abc` is a product.
    """
    words = re.findall(r"(?<![A-Za-z\d}])[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", " ", text))
    forms = [_singulars(word.lower()) for word in words]
    return frozenset(each[-1] for each in forms if _TELLING.isdisjoint(each) and not read_number_word(each[0]))


def is_known(unit: Unit) -> bool:
    """Whether the unit has a part that the tables know."""
    return any(name in _SHORT for name, _ in unit)


def _named(word: str, counted: Collection[str], symbols: bool) -> Unit:
    """A word as a unit; () where it is none."""
    if symbols:
        return ((_UNITS[word], 1),) if word in _UNITS and (word > "一" or word not in _NOUNS) else ()
    if word.lower() in _COMPOUND:
        return parse_unit(_COMPOUND[word.lower()]) or ()
    any_case = _ANY_CASE if len(word) > 2 or not word.islower() else {}  # `CM` is cm, but `mv` is no mV
    for name in (word, *_singulars(word.lower())):
        short = _UNITS.get(name) or any_case.get(name) or (name if name in counted else None)
        if short:
            return ((short, 1),)
    return ()


def _singulars(word: str) -> list[str]:
    """What a word may be the plural of, itself included, the likeliest last."""
    forms = [word]
    for ending, single in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            forms.append(word.removesuffix(ending) + single)
    return forms
