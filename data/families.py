"""Procedural, verifiable problem families in English and Chinese, with worked solutions.

`make_task` draws a task (numbers only, no language); `question`, `answer` and `solve` render it. Train and held-out
tasks are disjoint by content: a hash of the task, not of its wording, decides the split, so no held-out task is ever
seen in either language.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data.problems import Problem

Split = Literal["train", "held_out"]
LANGUAGES = ("en", "zh")
LEVELS = (1, 2, 3)
HELD_OUT_SHARE = 0.15  # of each family's tasks, by content hash

Speak = Callable[[], str]  # language of the next step
Slip = Callable[[int], int]  # a number as the solver writes it down; identity when careful


@dataclass(frozen=True, slots=True)
class Task:
    family: str
    level: int
    data: dict  # JSON-able; what the renderer and the solver need


def split_of(task: Task) -> Split:
    """The split of a task by its content, whatever the order of its operands. No two families can pose the same one."""
    key = json.dumps([task.family, _canonical(task.data)], sort_keys=True)
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return "held_out" if int.from_bytes(digest, "big") / 2**32 < HELD_OUT_SHARE else "train"


def _canonical(data: dict) -> dict:
    """The task without the order of its parts: 3,5,2 -> 10 is the task 2,3,5 -> 10, and 3+8 is 8+3."""
    canonical = dict(data)
    if "numbers" in data:
        canonical["numbers"] = sorted(data["numbers"])
    if "expression" in data:
        terms = re.findall(r"[-+]?[\d*]+", data["expression"])
        factors = ["*".join(sorted(term.lstrip("+").split("*"))) for term in terms]
        canonical["expression"] = sorted(factors)
    if "values" in data:
        canonical["values"] = [sorted(data["values"][:2]), data["values"][2:]]  # the first two stand side by side
    return canonical


# --- drawing tasks -----------------------------------------------------------------------------------------------


def _draw_chain_sum(level: int, rng: random.Random) -> dict:
    terms, high = [((2, 3), 20), ((3, 4), 9), ((2, 3), 50)][level - 1]
    return {"expression": _expression(rng.randint(*terms), "+-", 0, high, rng)}


def _draw_arithmetic(level: int, rng: random.Random) -> dict:
    """At least one product, which a chain of sums never has."""
    terms, high = [(2, 12), (3, 9), (4, 9)][level - 1]
    while True:
        expression = _expression(terms, "+-*", 0, high, rng)
        if "*" in expression:
            return {"expression": expression}


def _expression(terms: int, ops: str, low: int, high: int, rng: random.Random) -> str:
    first, *others = [rng.randint(low, high) for _ in range(terms)]
    return f"{first}" + "".join(f"{rng.choice(ops)}{number}" for number in others)


def _draw_sorting(level: int, rng: random.Random) -> dict:
    count, top = [(3, 9), (4, 9), (4, 30)][level - 1]
    numbers = [rng.randint(0, top) for _ in range(count)]
    return {"numbers": numbers, "direction": rng.choice(["ascending", "descending"])}


def _draw_comparison(level: int, rng: random.Random) -> dict:
    count, top = [(3, 20), (3, 99), (4, 99)][level - 1]
    return {"numbers": rng.sample(range(top + 1), count), "pick": rng.choice(["largest", "smallest"])}


def _draw_logic(level: int, rng: random.Random) -> dict:
    values = [rng.random() < 0.5 for _ in range(level + 3)]
    return {"values": values, "connectives": [rng.choice(["and", "or"]) for _ in values[1:]]}


def _draw_countdown(level: int, rng: random.Random) -> dict:
    """Solvable by construction: the target is the value of a chain over all the numbers, left to right."""
    count, high, most = [(2, 12, 60), (3, 6, 30), (3, 9, 40)][level - 1]
    while True:
        numbers = [rng.randint(1, high) for _ in range(count)]
        target = numbers[0]
        for number in numbers[1:]:
            target = _apply(target, rng.choice("+-*"), number)
        if 1 <= target <= most:
            rng.shuffle(numbers)
            return {"numbers": numbers, "target": target}


_DRAW = {
    "chain_sum": _draw_chain_sum,
    "arithmetic": _draw_arithmetic,
    "sorting": _draw_sorting,
    "comparison": _draw_comparison,
    "logic": _draw_logic,
    "countdown": _draw_countdown,
}
FAMILIES = tuple(_DRAW)
CHECKERS = {"sorting": "list", "logic": "choice", "countdown": "countdown"}  # all others: math


def make_task(family: str, level: int, split: Split, rng: random.Random) -> Task:
    """Draw until the task falls into `split`. Raises KeyError for an unknown family."""
    while True:
        task = Task(family, level, _DRAW[family](level, rng))
        if split_of(task) == split:
            return task


# --- rendering ---------------------------------------------------------------------------------------------------

_QUESTIONS = {
    ("chain_sum", "en"): ("What is {expression}?", "Calculate {expression}.", "Find the value of {expression}."),
    ("chain_sum", "zh"): ("{expression}等于多少?", "计算{expression}。", "求{expression}的值。"),
    ("sorting", "en"): ("Sort {numbers} in {direction} order.", "Put {numbers} in {direction} order."),
    ("sorting", "zh"): ("把{numbers}按{direction}排列。", "将{numbers}按{direction}排序。"),
    ("comparison", "en"): ("Which is the {pick} of {numbers}?", "Find the {pick} number: {numbers}."),
    ("comparison", "zh"): ("{numbers}中{pick}的是哪个?", "找出{pick}的数:{numbers}。"),
    ("logic", "en"): ("Judge: {formula}.", "Evaluate {formula}."),
    ("logic", "zh"): ("判断:{formula}。", "判断真假:{formula}。"),
    ("countdown", "en"): ("Use {numbers} to make {target}.", "Make {target} from {numbers}."),
    ("countdown", "zh"): ("用{numbers}算出{target}。", "由{numbers}得到{target}。"),
}
_WORDS = {
    "zh": {
        "ascending": "从小到大", "descending": "从大到小", "largest": "最大", "smallest": "最小",
        "and": "且", "or": "或", "true": "真", "false": "假",
    }
}  # fmt: skip


def _word(word: str, language: str) -> str:
    return _WORDS.get(language, {}).get(word, word)


def _formula(data: dict, language: str) -> str:
    space = " " if language == "en" else ""
    text = _word(str(data["values"][0]).lower(), language)
    for index, (connective, value) in enumerate(zip(data["connectives"], data["values"][1:], strict=True)):
        left = f"({text})" if index else text
        text = f"{left}{space}{_word(connective, language)}{space}{_word(str(value).lower(), language)}"
    return text


def question(task: Task, language: str, variant: int = 0) -> str:
    slots = {k: _word(v, language) if isinstance(v, str) else v for k, v in task.data.items()}
    if "numbers" in slots:
        slots["numbers"] = ",".join(str(n) for n in task.data["numbers"])
    if task.family == "logic":
        slots["formula"] = _formula(task.data, language)
    wordings = _QUESTIONS[("chain_sum" if task.family == "arithmetic" else task.family, language)]
    return wordings[variant % len(wordings)].format(**slots)


def answer(task: Task, language: str) -> str:
    """The right final answer as text (for countdown: one of the right expressions)."""
    return solve(task, lambda: language)[1]


def ground_truth(task: Task, language: str) -> str:
    """What the checker of this family needs (see `Problem.checker`)."""
    if task.family == "countdown":
        return json.dumps({"numbers": task.data["numbers"], "target": task.data["target"]})
    return answer(task, language)


def problem(family: str, level: int, index: int, split: Split, language: str, seed: int = 0) -> Problem:
    """Problem `index` of a split: the same arguments always give the same problem."""
    rng = random.Random(f"{seed}-{split}-{family}-{level}-{index}")
    task = make_task(family, level, split, rng)
    return Problem(
        id=f"{family}-{level}-{split}-{seed}-{index}-{language}",
        messages=({"role": "user", "content": question(task, language, rng.randrange(6))},),
        ground_truth=ground_truth(task, language),
        checker=CHECKERS.get(family, "math"),
        domain=family,
        language=language,
        metadata={"level": level},
    )


# --- solving -----------------------------------------------------------------------------------------------------


def careful(value: int) -> int:
    return value


def solve(task: Task, speak: Speak, slip: Slip = careful) -> tuple[list[str], str]:
    """Worked steps and final answer. `speak` gives each step's language, `slip` may corrupt what is written down."""
    return _SOLVE[task.family](task.data, speak, slip)


_STEP = {
    "start": {"en": "Start with {a}.", "zh": "从{a}开始。"},
    "then": {"en": "Then {a}{op}{b}={c}.", "zh": "然后{a}{op}{b}={c}。"},
    "product": {"en": "First {a}*{b}={c}.", "zh": "先算{a}*{b}={c}。"},
    "pick": {"en": "The {pick} is {a}, left {rest}.", "zh": "{pick}的是{a},剩下{rest}。"},
    "last": {"en": "The last is {a}.", "zh": "最后是{a}。"},
    "keep": {"en": "{a} and {b}, keep {c}.", "zh": "{a}和{b},留下{c}。"},
    "logic": {"en": "{a} {op} {b} is {c}.", "zh": "{a}{op}{b}得{c}。"},
    "try": {"en": "Try {a}{op}{b}={c}.", "zh": "试{a}{op}{b}={c}。"},
}


def _say(kind: str, language: str, **slots) -> str:
    words = {k: _word(v, language) if isinstance(v, str) else v for k, v in slots.items()}
    return _STEP[kind][language].format(**words)


def _apply(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def _solve_expression(data: dict, speak: Speak, slip: Slip) -> tuple[list[str], str]:
    """Products first, left to right; then sums, left to right."""
    tokens = re.findall(r"\d+|[-+*]", data["expression"])
    numbers, ops, steps = [int(t) for t in tokens[::2]], tokens[1::2], []
    while "*" in ops:
        at = ops.index("*")
        product = slip(numbers[at] * numbers[at + 1])
        steps.append(_say("product", speak(), a=numbers[at], b=numbers[at + 1], c=product))
        numbers[at : at + 2], ops[at : at + 1] = [product], []
    if not steps:
        steps.append(_say("start", speak(), a=numbers[0]))
    total = numbers[0]
    for op, number in zip(ops, numbers[1:], strict=True):
        result = slip(_apply(total, op, number))
        steps.append(_say("then", speak(), a=total, op=op, b=number, c=result))
        total = result
    return steps, str(total)


def _solve_sorting(data: dict, speak: Speak, slip: Slip) -> tuple[list[str], str]:
    pick = "smallest" if data["direction"] == "ascending" else "largest"
    left, ordered, steps = list(data["numbers"]), [], []
    while len(left) > 1:
        best = min(left) if pick == "smallest" else max(left)
        chosen = best if slip(best) == best else left[0]
        left.remove(chosen)
        ordered.append(chosen)
        steps.append(_say("pick", speak(), pick=pick, a=chosen, rest=",".join(map(str, left))))
    steps.append(_say("last", speak(), a=left[0]))
    return steps, ",".join(map(str, [*ordered, left[0]]))


def _solve_comparison(data: dict, speak: Speak, slip: Slip) -> tuple[list[str], str]:
    better = max if data["pick"] == "largest" else min
    kept, steps = data["numbers"][0], []
    for number in data["numbers"][1:]:
        right = better(kept, number)
        chosen = right if slip(right) == right else kept + number - right
        steps.append(_say("keep", speak(), a=kept, b=number, c=chosen))
        kept = chosen
    return steps, str(kept)


def _solve_logic(data: dict, speak: Speak, slip: Slip) -> tuple[list[str], str]:
    value, steps, language = data["values"][0], [], "en"
    for op, operand in zip(data["connectives"], data["values"][1:], strict=True):
        right = (value and operand) if op == "and" else (value or operand)
        result = right if slip(1) == 1 else not right
        language = speak()
        steps.append(
            _say("logic", language, a=str(value).lower(), op=op, b=str(operand).lower(), c=str(result).lower())
        )
        value = result
    return steps, _word(str(value).lower(), language)


def _solve_countdown(data: dict, speak: Speak, slip: Slip) -> tuple[list[str], str]:
    numbers, ops = _left_to_right(data["numbers"], data["target"]) or ([], [])
    total, steps, text = numbers[0], [], str(numbers[0])
    for index, (op, number) in enumerate(zip(ops, numbers[1:], strict=True)):
        if slip(1) != 1:  # a careless author takes another operation, and misses the target
            op = "-" if op == "+" else "+"
        result = _apply(total, op, number)
        steps.append(_say("try" if index == 0 else "then", speak(), a=total, op=op, b=number, c=result))
        text = f"({text}){op}{number}" if op == "*" and index and ops[index - 1] != "*" else f"{text}{op}{number}"
        total = result
    return steps, text


def _left_to_right(numbers: list[int], target: int) -> tuple[list[int], list[str]] | None:
    """The first chain ((a op b) op c) ... over all the numbers that hits the target, or None."""

    def search(total: int, rest: list[int], path: list[int], ops: list[str]):
        if not rest:
            return (path, ops) if total == target else None
        for at, number in enumerate(rest):
            for op in "+-*":
                deeper = search(_apply(total, op, number), rest[:at] + rest[at + 1 :], [*path, number], [*ops, op])
                if deeper:
                    return deeper
        return None

    for at, number in enumerate(numbers):
        found = search(number, numbers[:at] + numbers[at + 1 :], [number], [])
        if found:
            return found
    return None


_SOLVE = {
    "chain_sum": _solve_expression,
    "arithmetic": _solve_expression,
    "sorting": _solve_sorting,
    "comparison": _solve_comparison,
    "logic": _solve_logic,
    "countdown": _solve_countdown,
}
