"""Words and sentences as IFEval counts them. Linear in the length of a text, whatever it holds.

The public checker asks nltk: its model of English sentences (Punkt) and its word tokeniser (Treebank). Both are
followed here by rule. Of 3,152 paragraphs of Python's documentation and ours, 19 have another number of sentences here,
nearly all of them code, and 3 another number of capital words.
"""

import re

_WORD = re.compile(r"\w+")
# Where a sentence can end: at marks before white space, or before what closes or opens brackets and quotations.
_END = re.compile(
    r"(?<![.?!])(?P<marks>[.?!]++)(?=(?:[)\]}\"'*”’»]++\s*+|\s++|(?=[;:@(\[{]))(?P<next>[^\s)\]}\"'*]\w*+|[\"'*]))"
)
_LONGEST = 12  # characters of an abbreviation and of what opens a bracket or quotation before it
# Those that Punkt's English model has, and one reads; it has neither "e.g." nor "etc.", whose dots end a sentence.
_ABBREVIATIONS = frozenset(
    """
    adm col dr gen jr lt maj messrs mr mrs ms prof rep reps sen sr st bros co corp cos inc ltd aug dec feb jan nov oct
    sep sept fri tues wed ala ariz ave calif colo conn fla ga ill kan ky mich minn nev okla ore pa tenn va vt wash wis
    d.c n.c n.h n.j n.m n.y s.c u.k u.n u.s u.s.a w.va l.a a.d a.m p.m ct ft mg ok ph.d v vs yr
    """.split()  # noqa: SIM905  a list this long reads better as words
)
# Capital words that begin a sentence even after an abbreviation.
_STARTERS = frozenset(
    """
    According Although Among Both But Despite Even He However I If In Indeed Instead It Many Meanwhile Moreover Most
    Nevertheless Nor She Similarly Since So Some The There These They This Though Thus Under We When While Yet You
    """.split()  # noqa: SIM905
)
# What Treebank puts between two words: a hyphen, slash, dot or star inside of a word stays in it.
_BETWEEN = re.compile(r"[\s;@#$%&?!\"“”«»„‘’`()\[\]{}<>…]+|--+|\.\.\.|[:,](?!\d)|''")
_CONTRACTION = re.compile(r"(?<=[^'\s])(?:'(?:[sSmMdD]|ll|LL|re|RE|ve|VE|)|n't|N'T)\Z")


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores; a hyphen parts two words."""
    return sum(1 for _ in _WORD.finditer(text))


def count_sentences(text: str) -> int:
    """Stretches up to `.`, `?` or `!` before white space or brackets, and what is left after the last.

    A line break ends none, nor does a dot after an abbreviation, an initial or the number of an item ("1. go there"),
    nor three dots before anything but a capital letter.
    """
    if not text.strip():
        return 0
    return 1 + sum(_ends(match) for match in _END.finditer(text))


def count_capital_words(text: str) -> int:
    """Words whose letters are all capital, "A" and "I" too. A contraction is two words, "DON'T" as DO and N'T."""
    words = (part for word in _BETWEEN.split(text) for part in _without_contraction(word))
    return sum(part.isupper() for part in words)


def _ends(match: re.Match[str]) -> bool:
    marks = match["marks"]
    if "?" in marks or "!" in marks:
        return True
    if len(marks) > 1:
        return match["next"][0].isupper()
    before = match.string[max(0, match.start() - _LONGEST) : match.start()]
    word = before.split()[-1].lstrip("\"'([{*“‘«") if before and not before[-1].isspace() else ""
    if word.isdecimal() and match["next"][0].islower():  # the number of an item
        return False
    if len(word) == 1 and word.isupper() and word != "I":  # an initial, "J. R. R. Tolkien"
        return False
    return word.lower() not in _ABBREVIATIONS or match["next"] in _STARTERS


def _without_contraction(word: str) -> tuple[str, ...]:
    found = _CONTRACTION.search(word, max(0, len(word) - 4))
    return (word[: found.start()], found[0]) if found else (word,)
