"""Language consistency: the share of words of the target language in the reasoning (DeepSeek-R1, Eq. 7).

    reward = words of the target language in the CoT / all words in the CoT

The paper does not say how words are split or their language told. Here it goes by script:

- a word is a run of two or more letters of a script with spaces (Latin, Cyrillic, Greek, Hangul, Arabic, Hebrew,
  Devanagari); apostrophes and digits end a run;
- Han characters and kana have no spaces between words: a run of n of them counts as ceil(n / 2) words, since Chinese
  words are nearly two characters long on average. Counting characters would give Chinese twice the weight of English.
  Thai has no spaces either, and words of about four characters;
- Han characters are Japanese in a sentence that has kana, and Chinese elsewhere;
- not words: digits, punctuation, single letters (variables, but "a" and "I" too), LaTeX commands, formulas, code,
  and the names given. A formula or code span that holds three words in a row is prose in disguise and counts.

Languages in Latin script are told apart by their function words (`rewards.function_words`), sentence by sentence:
where the target is one of them, a sentence with more function words of another counts as that other; one without any
goes with the sentence before it. But only when those sentences hold ten function words of the other language or more:
a name or a quotation is no language.

What this does not see: Latin script without a list (pinyin, Swedish), and two languages in one other script.
"""

import re
from collections import Counter
from collections.abc import Collection

from pydantic import BaseModel, Field

from data.chat import parse_completion
from data.problems import Problem
from rewards.function_words import FUNCTION_WORDS, LANGUAGES_OF
from rewards.reward import Score

LATIN, HAN, KANA, HANGUL, CYRILLIC, THAI = "latin", "han", "kana", "hangul", "cyrillic", "thai"
ARABIC, DEVANAGARI, GREEK, HEBREW = "arabic", "devanagari", "greek", "hebrew"
SCRIPTS = {
    "zh": {HAN}, "ja": {KANA}, "ko": {HANGUL}, "ru": {CYRILLIC}, "th": {THAI}, "ar": {ARABIC},
    "hi": {DEVANAGARI}, "el": {GREEK}, "he": {HEBREW}, **{language: {LATIN} for language in FUNCTION_WORDS},
}  # fmt: skip

_RUNS = re.compile(
    rf"(?P<{LATIN}>[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]+)"
    rf"|(?P<{HAN}>[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]+)"
    rf"|(?P<{KANA}>[\u3041-\u3096\u30a1-\u30fa\u30fc]+)|(?P<{HANGUL}>[\uac00-\ud7a3]+)|(?P<{CYRILLIC}>[\u0400-\u04ff]+)"
    rf"|(?P<{THAI}>[\u0e01-\u0e3a\u0e40-\u0e4e]+)|(?P<{ARABIC}>[\u0621-\u0652\u066e-\u06d3\u0750-\u077f]+)"
    rf"|(?P<{DEVANAGARI}>[\u0900-\u0963\u0971-\u097f]+)|(?P<{GREEK}>[\u0386-\u03ff\u1f00-\u1fff]+)"
    rf"|(?P<{HEBREW}>[\u05d0-\u05ea]+)"
)
_ASCII_WORDS = str.maketrans({chr(code): chr(code).lower() if chr(code).isalpha() else " " for code in range(128)})
# Function words that are none of the language itself.
_FOREIGN = {language: LANGUAGES_OF.keys() - words for language, words in FUNCTION_WORDS.items()}
_SENTENCES = re.compile(r"[^。！？!?\n]+[。！？!?\n]*")
_LEAST_EVIDENCE = 10  # function words of another language, in all sentences that seem to be in it
_LATIN_ENDS = re.compile(r"(?<=[.:;])\s+")
# Characters per word where no spaces separate them: means over running text.
_WORD_LENGTH = {HAN: 2, KANA: 2, THAI: 4}
_SPAN_START = re.compile(
    r"```|`(?=[^`\n]*`)|\$\$|\$(?=[^$\n]*\$)|\\\[|\\\(|\\begin\{(?P<name>equation|align|gather|cases|array|[pbv]?matrix)\*?\}"
)
_SPAN_ENDS = {"\\[": "\\]", "\\(": "\\)"}  # the others end as they start
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{[a-z]*\*?\}|\\[A-Za-z]+\*?")
_PROSE = re.compile(r"(?<![A-Za-z])[A-Za-z]{2,}+\s++[A-Za-z]{2,}+\s++[A-Za-z]{2,}|[㐀-䶿一-鿿]{5}")


class LanguageOptions(BaseModel, extra="forbid", frozen=True):
    """Options of the language-consistency reward."""

    language: str | None = Field(
        default=None,
        description="ISO 639-1 code of the target language; none takes the language of each problem, as in R1.",
    )
    names: tuple[str, ...] = Field(
        default=(),
        description="Words that belong to no language, e.g. proper names; those in metadata['names'] are added.",
    )
    wordless_value: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Value of reasoning that holds formulas and digits but no word, where Eq. 7 is 0/0; 0 so that "
        "leaving words out never pays.",
    )
    pass_at: float = Field(
        default=0.9, ge=0, le=1, description="Share from which the verdict is PASS; the reward itself is the share."
    )


class LanguageConsistency:
    """Eq. 7 as a reward in [0, 1]. Missing, malformed or empty reasoning earns nothing."""

    name = "language"
    judges = frozenset({"language"})
    Options = LanguageOptions

    def __init__(self, options: LanguageOptions | None = None):
        self.options = options or LanguageOptions()
        if self.options.language is not None:
            _scripts_of(self.options.language)

    def __call__(self, problem: Problem, completion: str) -> Score:
        language = self.options.language or problem.language
        if language not in SCRIPTS:
            return Score.error(f"Language {language!r} of problem {problem.id} is not one of {', '.join(SCRIPTS)}.")
        reasoning = parse_completion(completion).reasoning
        if not reasoning:
            return Score.failed(detail="no reasoning")
        names = (*self.options.names, *problem.metadata.get("names", ()))
        share = language_consistency(reasoning, language, names)
        if share is None:
            value = self.options.wordless_value if any(char.isalnum() for char in reasoning) else 0.0
            return Score.failed(value, "no words in the reasoning")
        detail = f"{share:.0%} of the words are {language}"
        return Score.passed(share, detail) if share >= self.options.pass_at else Score.failed(share, detail)


def language_consistency(text: str, language: str, names: Collection[str] = ()) -> float | None:
    """Share of the words in `text` that are of `language`, in [0, 1]; None when there are no words.

    Raises ValueError for a language whose script is not known here.
    """
    scripts = _scripts_of(language)
    text = _bare(text, names)
    if text.isascii() and language in FUNCTION_WORDS:
        words = text.translate(_ASCII_WORDS).split()
        if _FOREIGN[language].isdisjoint(words) and any(len(word) > 1 for word in words):
            return 1.0  # no sentence can be in another language
    counts = _count(text)
    total = sum(counts.values())
    own = sum(counts.get(script, 0) for script in scripts)
    if language in FUNCTION_WORDS:
        own -= _words_of_others(text, language)
    return own / total if total else None


def count_words_by_script(text: str, names: Collection[str] = ()) -> dict[str, int]:
    """Number of words per script, by the rules above."""
    return _count(_bare(text, names))


def _bare(text: str, names: Collection[str]) -> str:
    """The text without formulas, code, commands and names."""
    if "\\" in text or "$" in text or "`" in text:  # one of them begins every span and command
        text = _COMMAND.sub(" ", _without_spans(text))
    for name in sorted(filter(None, names), key=len, reverse=True):
        boundary = r"(?<![A-Za-z]){}(?![A-Za-z])" if name.isascii() else "{}"
        text = re.sub(boundary.format(re.escape(name)), " ", text, flags=re.IGNORECASE)
    return text


def _count(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sentence in _SENTENCES.findall(text):
        runs = [(match.lastgroup or "", len(match[0])) for match in _RUNS.finditer(sentence)]
        japanese = any(script == KANA for script, _ in runs)
        for script, length in runs:
            words = -(-length // _WORD_LENGTH[script]) if script in _WORD_LENGTH else int(length > 1)
            if words:
                script = KANA if script == HAN and japanese else script
                counts[script] = counts.get(script, 0) + words
    return counts


def _words_of_others(text: str, target: str) -> int:
    """How many words in Latin script are of another language than `target`."""
    words, evidence = Counter[str](), Counter[str]()
    spoken = target
    for sentence in _SENTENCES.findall(text):
        for part in _LATIN_ENDS.split(sentence):
            found = [
                match[0].lower() for match in _RUNS.finditer(part) if match.lastgroup == LATIN and len(match[0]) > 1
            ]
            matches = Counter(language for word in found for language in LANGUAGES_OF.get(word, ()))
            if matches:
                # The target wins a tie, and so does the language spoken before: Spanish and Portuguese share words.
                spoken = max(matches, key=lambda language: (matches[language], language == target, language == spoken))
            words[spoken] += len(found)
            evidence[spoken] += matches[spoken]
    others = (language for language in words if language != target and evidence[language] >= _LEAST_EVIDENCE)
    return sum(words[language] for language in others)


def _without_spans(text: str) -> str:
    """The text without formulas and code, but with the prose inside of them.

    Linear: an end that is not found once is not looked for again, however many spans are opened.
    """
    pieces, position, endless = [], 0, set()
    while start := _SPAN_START.search(text, position):
        pieces.append(text[position : start.start()])
        kind = start["name"] or start[0]
        end = None if kind in endless else _end_of_span(text, start)
        if end is None:
            endless.add(kind)
            pieces.append(start[0])
        else:
            inside = _COMMAND.sub("", text[start.start() : end])
            pieces.append(inside if _PROSE.search(inside) else " ")
        position = end or start.end()
    return "".join([*pieces, text[position:]])


def _end_of_span(text: str, start: re.Match[str]) -> int | None:
    ending = rf"\\end\{{{start['name']}\*?\}}" if start["name"] else re.escape(_SPAN_ENDS.get(start[0], start[0]))
    end = re.compile(ending).search(text, start.end())
    return end.end() if end else None


def _scripts_of(language: str) -> set[str]:
    if language not in SCRIPTS:
        raise ValueError(f"Language consistency knows {', '.join(SCRIPTS)}, not {language!r}; set one of them.")
    return SCRIPTS[language]
