"""IFEval's 25 instructions (Zhou et al. 2023, arXiv:2311.07911), each checked as the public checker checks it.

That checker is `instructions.py` of google-research/instruction_following_eval. It is followed to the letter, oddities
too, where a number would else not be comparable: a keyword counts inside of other words, a pair of brackets may hold
nothing, an empty paragraph still counts when the nth one is looked up. `rewards.instruction_kinds`
has our own checks; they say the same in words and another thing on the edges, so the two are kept apart.

What differs, on purpose:

- Sentences and words in capitals are counted by rule (`rewards.ifeval_text`), languages told by `rewards.language_id`.
- A keyword is a regular expression there. Here only its dots are (any character); other marks stand for themselves, so
  that no row can bring a pattern that takes forever, or none at all ("C++").
- JSON that is nested too deeply is no JSON; there it is a crash.

Every check is linear in the length of the text: completions are hostile. Checks get the text that is not blank.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.chat import parse_completion
from data.ifeval import AT_LEAST, Instruction, read_instructions
from data.problems import Problem
from rewards.ifeval_text import count_capital_words, count_sentences, count_words
from rewards.language_id import is_written_in
from rewards.reward import Score

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")  # of constrained_response

_STAR_BULLET = re.compile(r"^[^\S\n]*+\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*+-", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*[^\n*]*+\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*+\*\*")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_POSTSCRIPTS = {"P.P.S": re.compile(r"p\.\s?p\.\s?s"), "P.S.": re.compile(r"p\.\s?s\.")}
_FENCES = ("```json", "```Json", "```JSON", "```")


@dataclass(frozen=True, slots=True)
class Tally:
    """How many instructions a response had, and followed: as it is, and in the best of its loose variants."""

    asked: int
    strict: int
    loose: int


def check_ifeval(problem: Problem, text: str) -> Score:
    """PASS when all instructions are followed (prompt-level strict accuracy); the value is the share that are."""
    try:
        instructions = read_instructions(problem.ground_truth)
    except (ValueError, RecursionError) as error:
        return Score.error(f"The instructions of problem {problem.id} cannot be used: {error}.")
    broken = [each["id"] for each in instructions if not follows(each, text)]
    if not broken:
        return Score.passed(detail="all instructions followed")
    return Score.failed(1 - len(broken) / len(instructions), f"not followed: {', '.join(broken)}")


def tally_completion(problem: Problem, completion: str) -> Tally | None:
    """Strict and loose counts of a whole completion; None for a problem whose instructions cannot be read.

    What stands in the reasoning is not looked at. An answer tag, where there is one, bounds the response.
    """
    parsed = parse_completion(completion)
    text = parsed.final if parsed.answer is None else parsed.answer
    try:
        instructions = read_instructions(problem.ground_truth)
    except (ValueError, RecursionError):
        return None
    return Tally(
        asked=len(instructions),
        strict=sum(follows(each, text) for each in instructions),
        loose=sum(any(follows(each, variant) for variant in loose_variants(text)) for each in instructions),
    )


def follows(instruction: Instruction, text: str) -> bool:
    """Whether a response follows one instruction, which `read_instructions` has checked. A blank one follows none."""
    arguments = {name: value for name, value in instruction.items() if name != "id"}
    return bool(text.strip()) and CHECKS[instruction["id"]](text, **arguments)


def loose_variants(text: str) -> Iterator[str]:
    """The text; without its first line, its last, and both (an opening or closing remark); each also without stars."""
    lines = text.split("\n")
    trimmed = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    for variant in trimmed:
        yield from (variant, variant.replace("*", ""))


def _holds(relation: str, count: int, threshold: int) -> bool:
    return count >= threshold if relation == AT_LEAST else count < threshold


def _pattern(keyword: str) -> str:
    return re.escape(keyword).replace(r"\.", ".")


def _existence(text: str, keywords: Sequence[str]) -> bool:
    return all(re.search(_pattern(keyword), text, re.IGNORECASE) for keyword in keywords)


def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    found = sum(1 for _ in re.finditer(_pattern(keyword.strip()), text, re.IGNORECASE))
    return _holds(relation, found, frequency)


def _forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{_pattern(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(let_relation, Counter(text.lower())[letter.lower()], let_frequency)


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(relation, count_sentences(text), num_sentences)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(relation, count_words(text), num_words)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Between dividers, `***`. One before the first or after the last paragraph is let pass, an empty one is not."""
    paragraphs = [bool(paragraph.strip()) for paragraph in _DIVIDER.split(text)]
    return all(paragraphs[1:-1]) and sum(paragraphs) == num_paragraphs


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Of the nth paragraph between blank lines, which empty ones move, though they are not counted."""
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    count = sum(map(bool, paragraphs))
    if not 1 <= nth_paragraph <= count or count != num_paragraphs or not paragraphs[nth_paragraph - 1]:
        return False
    word = paragraphs[nth_paragraph - 1].split(maxsplit=1)[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word, maxsplit=1)[0].lower() == first_word.lower()


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(map(_placeholders, text.split("\n"))) >= num_placeholders


def _placeholders(line: str) -> int:
    """Pairs of brackets: an opening one and the next closing one, then on behind it."""
    count, end = 0, 0
    while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1) > 0:
        count += 1
    return count


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    known = _POSTSCRIPTS.get(marker) or re.compile(_pattern(marker.lower()))
    return known.search(text.lower()) is not None


def _number_bullet_lists(text: str, num_bullets: int) -> bool:
    found = len(_STAR_BULLET.findall(text)) + len(_DASH_BULLET.findall(text))
    return found == num_bullets


def _number_highlighted_sections(text: str, num_highlights: int) -> bool:
    """`*this*` and `**this**`, on one line and not blank."""
    single = sum(bool(found.strip("*").strip()) for found in _HIGHLIGHT.findall(text))
    double = sum(bool(found[2:-2].strip()) for found in _DOUBLE_HIGHLIGHT.findall(text))
    return single + double >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    found = sum(1 for _ in re.finditer(rf"{_pattern(section_spliter.strip())}\s?\d+", text))
    return found >= num_sections


def _json_format(text: str) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(map(_has_title, text.split("\n")))


def _has_title(line: str) -> bool:
    """From the first `<<` of the line to its last `>>`."""
    start = line.find("<<")
    end = line.rfind(">>", start + 3) if start >= 0 else -1
    return end >= 0 and bool(line[start : end + 2].lstrip("<").rstrip(">").strip())


def _two_responses(text: str) -> bool:
    responses = [response.strip() for response in text.split("******")]
    if not all(responses[1:-1]):
        return False
    given = list(filter(None, responses))
    return len(given) == 2 and given[0] != given[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_checker(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(capital_relation, count_capital_words(text), capital_frequency)


CHECKS: dict[str, Callable[..., Any]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": is_written_in,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": lambda text: any(option in text for option in OPTIONS),
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": lambda text: text.isupper() and is_written_in(text, "en"),
    "change_case:english_lowercase": lambda text: text.islower() and is_written_in(text, "en"),
    "punctuation:no_comma": lambda text: "," not in text,
}
