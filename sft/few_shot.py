"""Worked examples put before a prompt: each a document of its own, in the layout that the completions should have."""

import random
from collections.abc import Callable
from typing import Any

from data import families
from data.chat import Template, render_prompt
from data.problems import Problem


def few_shot_prompt(count: int, template: Template, seed: int) -> Callable[[Any, Problem, int], list[int]]:
    """Renders a problem after `count` worked examples of its family and language, drawn from the train split."""

    def render(tokenizer: Any, problem: Problem, index: int) -> list[int]:
        rng = random.Random(f"{seed}-few-shot-{index}")
        ids: list[int] = []
        for _ in range(count):
            question, completion = worked_example(problem, rng)
            ids += render_prompt(tokenizer, [{"role": "user", "content": question}], template)
            ids += [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return ids + render_prompt(tokenizer, problem.messages, template)

    return render


def worked_example(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """Question and careful solution of a problem like this one; of any family where it is not procedural."""
    language = problem.language if problem.language in families.LANGUAGES else "en"
    while True:
        family = problem.domain if problem.domain in families.FAMILIES else rng.choice(families.FAMILIES)
        task = families.make_task(family, rng.choice(families.LEVELS), "train", rng)
        question = families.question(task, language, rng.randrange(6))
        if question != problem.question:
            break
    steps, answer = families.solve(task, lambda: language)
    reasoning = (" " if language == "en" else "").join(steps)
    return question, f"<think>\n{reasoning}\n</think>\n<answer>{answer}</answer>"
