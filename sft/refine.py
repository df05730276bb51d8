"""From an R1-Zero completion to R1's layout: readable reasoning, then a short summary with the boxed answer.

    <think> steps </think> <answer> 18 </answer>   ->   <think>\\nsteps\\n</think>\\n\\nThe answer is \\boxed{18}.

DeepSeek-R1 (arXiv:2501.12948v2, B.3.2) has an LLM write the summary; `ModelRefiner` does that through any generator.
`RuleRefiner` needs no model: it keeps the steps as they are and fills a template, so it cannot invent anything.
Neither checks correctness: grade and filter what they return.
"""

import random
from collections.abc import Sequence
from typing import Protocol

from data.chat import THINK_CLOSE, THINK_OPEN, Template, parse_completion, render_prompt
from data.problems import Problem
from data.schemas import last_boxed
from rollouts.generator import Generator
from rollouts.records import Request, SamplingParams

SUMMARIES = {
    "en": (
        "The answer is \\boxed{{{answer}}}.",
        "So the answer is \\boxed{{{answer}}}.",
        "Answer: \\boxed{{{answer}}}",
        "The final answer is \\boxed{{{answer}}}.",
    ),
    "zh": (
        "答案是 \\boxed{{{answer}}}。",
        "所以答案是 \\boxed{{{answer}}}。",
        "答案：\\boxed{{{answer}}}",
        "最终答案是 \\boxed{{{answer}}}。",
    ),
}
LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}

# After Listing 1 of the paper.
REFINE_PROMPT = """## Question
{question}

## Thoughts
{reasoning}

## Final answer
{answer}

From these thoughts, write a clear and well-formatted solution to the question, in the language of the question \
({language}).
- Stay with the thoughts: add no step and no conclusion that they do not contain.
- Show the key steps in LaTeX and keep it short.
- Put the final answer in \\boxed{{}}.
- Do not mention the thoughts, and write nothing but the solution."""


class Refiner(Protocol):
    """Rewrites completions of R1-Zero; one result per pair, None where a completion cannot be refined."""

    def refine(self, pairs: Sequence[tuple[Problem, str]]) -> list[str | None]: ...


class RuleRefiner:
    """Templates only. The variant depends on (seed, problem id, completion), not on order."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def refine(self, pairs: Sequence[tuple[Problem, str]]) -> list[str | None]:
        return [self._refine_one(problem, completion) for problem, completion in pairs]

    def _refine_one(self, problem: Problem, completion: str) -> str | None:
        split = reasoning_and_answer(completion)
        if split is None:
            return None
        reasoning, answer = split
        rng = random.Random(f"{self.seed} {problem.id} {completion}")
        summaries = SUMMARIES.get(problem.language, SUMMARIES["en"])
        return r1_layout(reasoning, rng.choice(summaries).format(answer=answer))


class ModelRefiner:
    """A model writes the summary; the reasoning stays, and a summary with another answer than Zero's is refused."""

    def __init__(self, generator: Generator, tokenizer, params: SamplingParams, template: Template = "chat") -> None:
        if params.group_size != 1:
            raise ValueError(f"ModelRefiner: group_size must be 1, one summary per completion, got {params.group_size}")
        self.generator = generator
        self.tokenizer = tokenizer
        self.params = params
        self.template: Template = template

    def refine(self, pairs: Sequence[tuple[Problem, str]]) -> list[str | None]:
        refined: list[str | None] = [None] * len(pairs)
        splits = {position: split for position, (_, text) in enumerate(pairs) if (split := reasoning_and_answer(text))}
        requests = [self._request(position, pairs[position][0], *split) for position, split in splits.items()]
        groups = self.generator.sample(requests, self.params) if requests else []
        for (position, (reasoning, answer)), group in zip(splits.items(), groups, strict=True):
            sampled = group.completions[0]
            summary = parse_completion(sampled.text).final  # a reasoning model thinks first; that part is not kept
            if sampled.finish_reason == "stop" and _same_answer(last_boxed(summary), answer):
                refined[position] = r1_layout(reasoning, summary)
        return refined

    def _request(self, position: int, problem: Problem, reasoning: str, answer: str) -> Request:
        message = {"role": "user", "content": refine_prompt(problem, reasoning, answer)}
        prompt_ids = render_prompt(self.tokenizer, [message], self.template)
        return Request(key=f"refine-{problem.id}-{position}", prompt_ids=prompt_ids)


def refine_prompt(problem: Problem, reasoning: str, answer: str) -> str:
    """What `ModelRefiner` asks for: a short readable solution, no added steps, LaTeX, boxed, same language."""
    language = LANGUAGE_NAMES.get(problem.language, problem.language)
    return REFINE_PROMPT.format(question=problem.question, reasoning=reasoning, answer=answer, language=language)


def reasoning_and_answer(completion: str) -> tuple[str, str] | None:
    """Steps and bare answer of a Zero completion, or None: no single think block, no single tagged answer, or an
    answer that does not fit into one \\boxed{}. Text around the answer tags is left out; the summary replaces it."""
    parsed = parse_completion(completion)
    if not parsed.reasoning or not parsed.answer:
        return None
    answer = (last_boxed(parsed.answer) or parsed.answer).strip().strip("$").strip()
    if not answer or "\n" in answer or not _braces_match(answer):
        return None
    return parsed.reasoning, answer


def r1_layout(reasoning: str, summary: str) -> str:
    return f"{THINK_OPEN}\n{reasoning.strip()}\n{THINK_CLOSE}\n\n{summary.strip()}"


def _braces_match(text: str) -> bool:
    depth = 0
    for character in text.replace("\\{", "").replace("\\}", ""):
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def _same_answer(found: str | None, expected: str) -> bool:
    """Equal but for white space: the summary may space 1,2,3 differently, not change it."""
    return found is not None and "".join(found.split()) == "".join(expected.split())
