"""Raw text for the tiny base model: worked problems of uneven quality, as a web crawl would hold them.

Right and wrong steps, tidy and messy layouts, one language and mixed ones stand side by side, so that the model trained
on it knows how to solve the problems but does so only some of the time: a base model, with pass@16 far above pass@1.
Like a crawl of today it holds chat logs: CHAT_SHARE of the documents are written in the tokenizer's chat template.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from data import families
from data.chat import PLAIN_PROMPT, Template
from data.instructions import bad_answer, good_answer, instruction_problem

LEVEL_WEIGHTS = (4, 3, 2)
CHAT_SHARE = 0.5
INSTRUCTION_SHARE = 0.16
GOOD_INSTRUCTION_SHARE = 0.6
# How the answer is laid out: share of documents.
LAYOUTS = {"tagged": 0.22, "boxed": 0.10, "messy": 0.42, "direct": 0.16, "unclosed": 0.10}
CARELESS_SHARE = 0.4  # documents whose author slips
SLIP_RATE = 0.2  # share of a careless author's steps that are wrong
LANGUAGE_USE = {"matched": 0.65, "mixed": 0.2, "other": 0.15}


@dataclass(frozen=True, slots=True)
class Document:
    question: str
    completion: str
    template: Template  # the frame of the question: "chat" or "plain"

    @property
    def text(self) -> str:
        """The document in the plain frame: what a tokenizer is trained on, since a chat's turns are special tokens."""
        return PLAIN_PROMPT.format(question=self.question) + self.completion


def _pick(rng: random.Random, shares: dict[str, float]) -> str:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _slipping(rng: random.Random) -> families.Slip:
    def slip(value: int) -> int:
        if rng.random() >= SLIP_RATE:
            return value
        return value + rng.choice([-10, -2, -1, 1, 2, 10])

    return slip


def _lay_out(layout: str, steps: list[str], answer: str, language: str) -> str:
    text = " ".join(steps) if language == "en" else "".join(steps)
    says = "The answer is" if language == "en" else "答案是"
    match layout:
        case "tagged":
            return f"<think>\n{text}\n</think>\n<answer>{answer}</answer>"
        case "boxed":
            return f"{text}\n{says} \\boxed{{{answer}}}."
        case "messy":
            return f"{text} {says} {answer}"
        case "unclosed":
            return f"<think>\n{text}\n<answer>{answer}</answer>"
        case _:
            return f"<answer>{answer}</answer>"


def _worked(rng: random.Random) -> tuple[str, str]:
    """One train-split problem with a solution of random quality."""
    family = rng.choice(families.FAMILIES)
    task = families.make_task(family, rng.choices(families.LEVELS, LEVEL_WEIGHTS)[0], "train", rng)
    language = rng.choice(families.LANGUAGES)
    other = "zh" if language == "en" else "en"
    use = _pick(rng, LANGUAGE_USE)
    step_language = {
        "matched": lambda: language,
        "other": lambda: other,
        "mixed": lambda: rng.choice(families.LANGUAGES),
    }[use]
    slip = _slipping(rng) if rng.random() < CARELESS_SHARE else families.careful
    steps, answer = families.solve(task, step_language, slip)
    completion = _lay_out(_pick(rng, LAYOUTS), steps, answer, other if use == "other" else language)
    question = families.question(task, language, rng.randrange(6))
    return question, completion


def _answered_instruction(rng: random.Random) -> tuple[str, str]:
    problem = instruction_problem(rng.randrange(1 << 30), "train", rng.choice(families.LANGUAGES), seed=0)
    write = good_answer if rng.random() < GOOD_INSTRUCTION_SHARE else bad_answer
    answer = write(problem, rng)
    if rng.random() < 0.5:
        thought = "Answer the request." if problem.language == "en" else "回答这个要求。"
        answer = f"<think>\n{thought}\n</think>\n{answer}"
    return problem.question, answer


def documents(seed: str) -> Iterator[Document]:
    """An endless, reproducible stream."""
    rng = random.Random(f"corpus-{seed}")
    while True:
        write = _answered_instruction if rng.random() < INSTRUCTION_SHARE else _worked
        question, completion = write(rng)
        yield Document(question, completion, "chat" if rng.random() < CHAT_SHARE else "plain")
