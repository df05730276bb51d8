"""Non-reasoning general data of the tiny chain: short instructions in en and zh whose answers can be checked.

Stands in for the general prompts of R1's curated set and last RL stage (writing, factual QA, self-cognition), at the
level of a model of a few million parameters. Ground truth is JSON, {"checks": [{"kind": ...}, ...]}, all of which the
final text must meet:

    one_line                 no line break inside
    use_word {word}          the word occurs
    max_words {n}            at most n words (en) or Han characters (zh)
    n_items {n}              exactly n lines that are list items, "- apple"
    language {code}          written in that language
    repeat {text, n}         nothing but the text, n times, separated by spaces
    ends_with {text}         the last characters are `text`
    uppercase, lowercase     every cased letter is

The splits share words but no instruction. Facts and self-cognition cannot be inferred, so they are in train only.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from data.instruction_words import (
    CATEGORIES,
    ENDING,
    FACTS,
    FILLER,
    GREETINGS,
    NAMES,
    NUMBERS,
    PLACES,
    SENTENCES,
)
from data.problems import Problem

Split = Literal["train", "held_out"]
Check = dict[str, Any]

HELD_OUT_EVERY = 5  # one instruction in five is held out
_SPLIT_SEED = 20250120  # fixes which ones: the split must not depend on a run's seed
OTHER_LANGUAGE = {"en": "zh", "zh": "en"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    task: str
    question: str
    language: str
    checks: tuple[Check, ...]
    arguments: dict[str, Any]  # what `good_answer` needs: word, n, category, ...


def instruction_problem(index: int, split: Split, language: str, seed: int) -> Problem:
    """The problem at `index` of an endless sequence: every instruction of the split once per round, shuffled by seed.

    Raises:
        ValueError: negative index, or a split or language there is no data for.
    """
    if index < 0:
        raise ValueError(f"instruction_problem: index must be 0 or more, got {index}")
    pool = instructions(split, language)
    turn, position = divmod(index, len(pool))
    order = list(range(len(pool)))
    random.Random(f"{seed} {split} {language} {turn}").shuffle(order)
    chosen = pool[order[position]]
    return Problem(
        id=f"instruction-{split}-{seed}-{index}-{language}",
        messages=({"role": "user", "content": chosen.question},),
        ground_truth=json.dumps({"checks": list(chosen.checks)}, ensure_ascii=False),
        checker="instruction",
        domain="general",
        language=language,
        metadata={"task": chosen.task, "index": index, "split": split, "arguments": chosen.arguments},
    )


@cache
def instructions(split: Split, language: str) -> tuple[Instruction, ...]:
    """All instructions of one split. The two splits of a language share no question."""
    if language not in CATEGORIES or split not in ("train", "held_out"):
        raise ValueError(
            f"instructions: expected split train or held_out and language en or zh, got {split!r} and {language!r}"
        )
    train: list[Instruction] = []
    held_out: list[Instruction] = []
    for task in _TASKS:  # each on its own, so that both splits have every task
        drawn = list(task(language))
        random.Random(f"{_SPLIT_SEED} {language}").shuffle(drawn)
        for position, instruction in enumerate(drawn):
            (train if position % HELD_OUT_EVERY else held_out).append(instruction)
    return (*train, *_facts(language)) if split == "train" else tuple(held_out)


def good_answer(problem: Problem, rng: random.Random) -> str:
    """A final text that meets every check of the problem; `rng` chooses the wording."""
    return _GOOD[problem.metadata["task"]](problem.metadata["arguments"], problem.language, rng)


def bad_answer(problem: Problem, rng: random.Random) -> str:
    """A fluent final text that breaks one of the problem's checks, chosen by `rng`; it may break more."""
    checks = json.loads(problem.ground_truth)["checks"]
    return _break(rng.choice(checks), problem, rng)


def _greet(language: str) -> Iterator[Instruction]:
    frame = {"en": "Say hello to {name} in one line.", "zh": "用一句话向{name}问好。"}[language]
    for name in NAMES[language]:
        checks = ({"kind": "one_line"}, _use(name))
        yield _instruction("greet", frame.format(name=name), language, checks, name=name)


def _use_word(language: str) -> Iterator[Instruction]:
    frame = {"en": "Use the word {word} in a sentence.", "zh": "用“{word}”造一个短句。"}[language]
    for word in _nouns(language):
        checks = ({"kind": "one_line"}, _use(word))
        yield _instruction("use_word", frame.format(word=word), language, checks, word=word)


def _brief(language: str) -> Iterator[Instruction]:
    frame = {
        "en": "Write about the {word} in at most {number} words.",
        "zh": "写一句关于{word}的话，不超过{number}个字。",
    }[language]
    for word in PLACES[language]:
        n = {"en": 8, "zh": 10}[language]
        checks = (_use(word), {"kind": "max_words", "n": n})
        question = frame.format(word=word, number=NUMBERS[language][n])
        yield _instruction("use_word", question, language, checks, word=word)


def _end_with(language: str) -> Iterator[Instruction]:
    frame = {"en": "Write a sentence that ends with the word {word}.", "zh": "写一句以“{word}”结尾的话。"}[language]
    for word in PLACES[language]:
        checks = ({"kind": "one_line"}, {"kind": "ends_with", "text": word})
        yield _instruction("end_with", frame.format(word=word), language, checks, word=word)


def _list(language: str) -> Iterator[Instruction]:
    frame = {"en": "List {number} {category}.", "zh": "列出{number}种{category}。"}[language]
    for category in CATEGORIES[language]:
        for n in (2, 3, 4, 5):
            question = frame.format(number=NUMBERS[language][n], category=category)
            yield _instruction("list", question, language, ({"kind": "n_items", "n": n},), category=category, n=n)


def _repeat(language: str) -> Iterator[Instruction]:
    frame = {"en": "Repeat the word {word} {number} times.", "zh": "把“{word}”重复{number}次。"}[language]
    for word in (*PLACES[language], *_colors(language)):
        for n in (2, 3, 4):
            question = frame.format(word=word, number=NUMBERS[language][n])
            yield _instruction(
                "repeat", question, language, ({"kind": "repeat", "text": word, "n": n},), word=word, n=n
            )


def _letter_case(language: str) -> Iterator[Instruction]:
    if language != "en":  # Han characters have no case
        return
    for word in PLACES["en"]:
        capital = word.upper()
        checks = ({"kind": "uppercase"}, _use(capital))
        yield _instruction("copy", f"Write {word} in capital letters.", language, checks, word=capital)
        checks = ({"kind": "lowercase"}, _use(word))
        yield _instruction("copy", f"Write {capital} in small letters.", language, checks, word=word)


def _facts(language: str) -> Iterator[Instruction]:
    for question, word, answers in FACTS[language]:
        checks = ({"kind": "one_line"}, _use(word))
        yield _instruction("fact", question, language, checks, answers=list(answers))


_TASKS: tuple[Callable[[str], Iterator[Instruction]], ...] = (
    _greet,
    _use_word,
    _brief,
    _end_with,
    _list,
    _repeat,
    _letter_case,
)


def _good_list(arguments: dict[str, Any], language: str, rng: random.Random) -> str:
    return _items(rng.sample(CATEGORIES[language][arguments["category"]], arguments["n"]))


_GOOD: dict[str, Callable[[dict[str, Any], str, random.Random], str]] = {
    "greet": lambda arguments, language, rng: rng.choice(GREETINGS[language]).format(name=arguments["name"]),
    "use_word": lambda arguments, language, rng: rng.choice(SENTENCES[language]).format(word=arguments["word"]),
    "end_with": lambda arguments, language, rng: rng.choice(ENDING[language]).format(word=arguments["word"]),
    "list": _good_list,
    "repeat": lambda arguments, language, rng: " ".join([arguments["word"]] * arguments["n"]),
    "copy": lambda arguments, language, rng: arguments["word"],
    "fact": lambda arguments, language, rng: rng.choice(arguments["answers"]),
}


def _break(check: Check, problem: Problem, rng: random.Random) -> str:
    """A text that fails this one check."""
    language, good = problem.language, good_answer(problem, rng)
    match check["kind"]:
        case "language":
            return rng.choice(FILLER[OTHER_LANGUAGE[language]])
        case "one_line":
            return f"{good}\n{rng.choice(FILLER[language])}"
        case "max_words":
            return _sentence(f"{good} {' '.join(FILLER[language])}", language)
        case "use_word" | "ends_with":
            return rng.choice(FILLER[language])
        case "n_items":
            items = [item for items in CATEGORIES[language].values() for item in items]
            count = check["n"] + rng.choice((-1, 1, 2))
            return _items(rng.sample(items, count))
        case "repeat":
            count = check["n"] + rng.choice((-1, 1, 3))
            return " ".join([check["text"]] * count)
        case "uppercase":
            return good.lower()
        case "lowercase":
            return good.upper()
    raise ValueError(f"bad_answer: no way to break a check of kind {check['kind']!r}")


def _instruction(task: str, question: str, language: str, checks: tuple[Check, ...], **arguments: Any) -> Instruction:
    with_language = (*checks, {"kind": "language", "code": language})
    return Instruction(task=task, question=question, language=language, checks=with_language, arguments=arguments)


def _use(word: str) -> Check:
    return {"kind": "use_word", "word": word}


def _nouns(language: str) -> list[str]:
    """Everything that reads well after "the": all nouns but the colors."""
    colors = set(_colors(language))
    listed = [word for words in CATEGORIES[language].values() for word in words if word not in colors]
    return [*PLACES[language], *listed]


def _colors(language: str) -> tuple[str, ...]:
    return CATEGORIES[language]["colors" if language == "en" else "颜色"]


def _items(words: list[str]) -> str:
    return "\n".join(f"- {word}" for word in words)


def _sentence(text: str, language: str) -> str:
    return text.replace(" ", "") if language == "zh" else text
