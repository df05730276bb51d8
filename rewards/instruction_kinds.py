"""The kinds of checks an instruction can hold: name -> arguments and a function of the stripped final part.

To add one, write a function (text, its arguments) -> bool and a line in KINDS.
"""

import re
from collections.abc import Callable
from typing import Any

from rewards.json_schema import conforms, read_json
from rewards.language import language_consistency

LANGUAGE_SHARE = 0.9  # of the words that a `language` check asks for

_WORDS = re.compile(r"[㐀-䶿一-鿿ぁ-ゖァ-ヺ]|[^\W_㐀-䶿一-鿿ぁ-ゖァ-ヺ]+(?:['’-][^\W_㐀-䶿一-鿿]+)*")
_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)、])\s*\S")
_SENTENCE_END = re.compile(r"[。！？]|(?<![.!?])[.!?]++(?=[\s\"')\]]|$)")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e)\.", re.IGNORECASE)


def count_words(text: str) -> int:
    """Words between spaces and punctuation; each Chinese or Japanese character counts as one."""
    return len(_WORDS.findall(text))


def _one_line(text: str) -> bool:
    return len(text.splitlines()) == 1


def _use_word(text: str, word: str) -> bool:
    if not word.isascii():
        return word in text
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE | re.ASCII) is not None


def _n_items(text: str, n: int) -> bool:
    return sum(_ITEM.match(line) is not None for line in text.splitlines()) == n


def _language(text: str, code: str) -> bool:
    share = language_consistency(text, code)
    return share is not None and share >= LANGUAGE_SHARE


def count_sentences(text: str) -> int:
    """Stretches with a word in them up to `.`, `!` or `?` (also full-width); the last needs no mark."""
    return sum(count_words(piece) > 0 for piece in _SENTENCE_END.split(_ABBREVIATION.sub(" x ", text)))


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def _paragraphs(text: str) -> int:
    return sum(bool(paragraph.strip()) for paragraph in re.split(r"\n\s*\n|\n\*\*\*\n", text))


def _word_times(text: str, word: str) -> int:
    if not word.isascii():
        return text.count(word)
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE | re.ASCII))


def _capital_words(text: str) -> int:
    return sum(len(word) > 1 and word.isupper() for word in _WORDS.findall(text))


def _json(text: str) -> bool:
    return read_json(text)[0]


def _json_schema(text: str, schema: dict[str, Any]) -> bool:
    is_json, value = read_json(text)
    return is_json and conforms(value, schema)


def _quoted(text: str) -> bool:
    return len(text) > 2 and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("「", "」"))


def _title(text: str) -> bool:
    return re.search(r"<<[^<>\n]++>>", text) is not None


def _sections(text: str, marker: str) -> int:
    return len(re.findall(rf"^[^\w\n]*{re.escape(marker)}\s*\d+", text, re.MULTILINE | re.IGNORECASE))


def _without_trailing(text: str) -> str:
    return text.strip().rstrip(".。!！").lower()


# kind -> (names and types of its arguments, check). Checks get the stripped final part, never empty, first.
KINDS: dict[str, tuple[dict[str, type], Callable[..., bool]]] = {
    "one_line": ({}, _one_line),
    "use_word": ({"word": str}, _use_word),
    "avoid_word": ({"word": str}, lambda text, word: not _use_word(text, word)),
    "max_words": ({"n": int}, lambda text, n: count_words(text) <= n),
    "min_words": ({"n": int}, lambda text, n: count_words(text) >= n),
    "n_items": ({"n": int}, _n_items),
    "language": ({"code": str}, _language),
    "starts_with": ({"text": str}, lambda final, text: final.startswith(text)),
    "ends_with": ({"text": str}, lambda final, text: final.endswith(text)),
    "repeat": ({"text": str, "n": int}, lambda final, text, n: final.split() == text.split() * n),
    "lowercase": ({}, lambda text: text == text.lower() != text.upper()),
    "n_words": ({"n": int}, lambda text, n: count_words(text) == n),
    "n_lines": ({"n": int}, lambda text, n: _lines(text) == n),
    "max_lines": ({"n": int}, lambda text, n: _lines(text) <= n),
    "n_sentences": ({"n": int}, lambda text, n: count_sentences(text) == n),
    "min_sentences": ({"n": int}, lambda text, n: count_sentences(text) >= n),
    "max_sentences": ({"n": int}, lambda text, n: count_sentences(text) <= n),
    "n_paragraphs": ({"n": int}, lambda text, n: _paragraphs(text) == n),
    "n_sections": ({"marker": str, "n": int}, lambda text, marker, n: _sections(text, marker) == n),
    "word_times": ({"word": str, "n": int}, lambda text, word, n: _word_times(text, word) == n),
    "min_word_times": ({"word": str, "n": int}, lambda text, word, n: _word_times(text, word) >= n),
    "max_word_times": ({"word": str, "n": int}, lambda text, word, n: _word_times(text, word) <= n),
    "use_words": ({"words": list}, lambda text, words: all(_use_word(text, word) for word in words)),
    "avoid_words": ({"words": list}, lambda text, words: not any(_use_word(text, word) for word in words)),
    "min_letter_times": ({"letter": str, "n": int}, lambda text, letter, n: text.lower().count(letter.lower()) >= n),
    "max_letter_times": ({"letter": str, "n": int}, lambda text, letter, n: text.lower().count(letter.lower()) <= n),
    "min_capital_words": ({"n": int}, lambda text, n: _capital_words(text) >= n),
    "max_capital_words": ({"n": int}, lambda text, n: _capital_words(text) <= n),
    "no_commas": ({}, lambda text: not re.search(r"[,，、]", text)),
    "quoted": ({}, _quoted),
    "title": ({}, _title),
    "json": ({}, _json),
    "json_schema": ({"schema": dict}, _json_schema),
    "min_placeholders": ({"n": int}, lambda text, n: len(re.findall(r"\[[^\[\]\n]++\]", text)) >= n),
    "min_highlights": ({"n": int}, lambda text, n: len(re.findall(r"\*(?=[^*\n]*[^*\s])[^*\n]++\*", text)) >= n),
    "postscript": (
        {"marker": str},
        lambda text, marker: re.search(rf"^[ \t]*{re.escape(marker)}[^\w\n]*\w", text, re.M) is not None,
    ),
    "one_of": ({"options": list}, lambda text, options: _without_trailing(text) in map(_without_trailing, options)),
    "uppercase": ({}, lambda text: text == text.upper() != text.lower()),
}
