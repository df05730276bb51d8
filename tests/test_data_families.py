"""Procedural problems: their solutions are right, their splits apart, their draws repeatable."""

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest

from data import families
from data.corpus import documents
from data.families import FAMILIES, LANGUAGES, LEVELS, make_task, problem, question, solve, split_of
from data.problem_pool import ProblemPool, ProblemsConfig
from rewards.accuracy import Accuracy
from rewards.reward import Verdict

EVERY = [(family, level) for family in FAMILIES for level in LEVELS]


@pytest.fixture(scope="module")
def accuracy():
    reward = Accuracy()
    yield reward
    reward.close()


def tasks(family, level, count=60, split="train"):
    return [make_task(family, level, split, random.Random(f"{family}/{level}/{i}")) for i in range(count)]


def content(task) -> str:
    return json.dumps([task.family, task.data], sort_keys=True)


def completion(steps, answer) -> str:
    return f"<think>{' '.join(steps)}</think><answer>{answer}</answer>"


def as_problem(task, language):
    ground_truth = families.ground_truth(task, language)
    base = problem(task.family, task.level, 0, "train", language)
    return type(base)(
        id="t", messages=({"role": "user", "content": question(task, language)},), ground_truth=ground_truth,
        checker=base.checker, domain=task.family, language=language,
    )  # fmt: skip


def independent_value(expression: str) -> int:
    """Sum of signed products, without the solver's code."""
    terms = re.findall(r"[+-]?[^+-]+", expression)
    total = 0
    for term in terms:
        value = 1
        for factor in term.lstrip("+-").split("*"):
            value *= int(factor)
        total += -value if term.startswith("-") else value
    return total


def chain_value(expression: str) -> int:
    """Value of a chain like (2+3)*4-1, worked out from left to right, as its parentheses say."""
    tokens = re.findall(r"\d+|[-+*]", expression)
    total = int(tokens[0])
    for op, number in zip(tokens[1::2], map(int, tokens[2::2]), strict=True):
        total = total + number if op == "+" else total - number if op == "-" else total * number
    return total


@pytest.mark.parametrize(("family", "level"), EVERY)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_solution_passes_and_a_wrong_answer_fails(accuracy, family, level, language):
    for task in tasks(family, level, 25):
        steps, answer = solve(task, lambda: language)
        assert steps
        score = accuracy(as_problem(task, language), completion(steps, answer))
        assert score.verdict is Verdict.PASS, (task, answer, score.detail)
        rng = random.Random(content(task))
        _, other = solve(task, lambda: language, lambda value, r=rng: value + r.choice([-1, 1, 7]))
        score = accuracy(as_problem(task, language), completion(steps, other))
        right = chain_value(other) == task.data["target"] if family == "countdown" else other == answer
        assert (score.verdict is Verdict.PASS) == right, (task, other, score.detail)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", ["chain_sum", "arithmetic"])
def test_values_against_an_independent_evaluation(family, level):
    for task in tasks(family, level):
        assert int(families.answer(task, "en")) == independent_value(task.data["expression"])


@pytest.mark.parametrize("level", LEVELS)
def test_answers_of_the_other_families(level):
    for task in tasks("sorting", level):
        numbers = sorted(task.data["numbers"], reverse=task.data["direction"] == "descending")
        assert families.answer(task, "zh") == ",".join(map(str, numbers))
    for task in tasks("comparison", level):
        pick = max if task.data["pick"] == "largest" else min
        assert families.answer(task, "en") == str(pick(task.data["numbers"]))
    for task in tasks("logic", level):
        value = task.data["values"][0]
        for word, operand in zip(task.data["connectives"], task.data["values"][1:], strict=True):
            value = {"and": min, "or": max}[word](value, operand)
        assert families.answer(task, "en") == str(value).lower()
        assert families.answer(task, "zh") == ("真" if value else "假")


@pytest.mark.parametrize(("family", "level"), EVERY)
def test_both_languages_ask_the_same(family, level):
    for task in tasks(family, level, 20):
        english, chinese = (question(task, language) for language in LANGUAGES)
        assert re.findall(r"\d+", english) == re.findall(r"\d+", chinese)
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert not re.search(r"[a-z]{2,}", chinese)
        assert "{" not in english + chinese


@pytest.mark.parametrize(("family", "level"), EVERY)
def test_steps_are_in_the_language_asked_for(family, level):
    for task in tasks(family, level, 10):
        assert not re.search(r"[\u4e00-\u9fff]", " ".join(solve(task, lambda: "en")[0]))
        assert not re.search(r"[a-z]{2,}", "".join(solve(task, lambda: "zh")[0]))


def test_splits_have_no_task_in_common():
    for family, level in EVERY:
        train, held_out = ({content(t) for t in tasks(family, level, 200, split)} for split in ("train", "held_out"))
        assert not train & held_out


def test_no_question_is_in_both_splits():
    """Also across families: chain sums and arithmetic share questions."""
    questions = {
        split: {question(t, "en") for family, level in EVERY for t in tasks(family, level, 400, split)}
        for split in ("train", "held_out")
    }
    assert not questions["train"] & questions["held_out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_share(family):
    """Of the tasks that are drawn at all; sums must be held out of two families, so fewer of them are."""
    rng = random.Random(0)
    drawn = [families.Task(family, 3, families._DRAW[family](3, rng)) for _ in range(4000)]
    splits = Counter({content(task): split_of(task) for task in drawn}.values())
    total = splits["held_out"] + splits["train"]
    share = splits["held_out"] / total
    assert share < families.HELD_OUT_SHARE + 5 * (0.13 / total) ** 0.5
    if family not in ("chain_sum", "arithmetic"):
        assert splits[None] == 0
        assert share > families.HELD_OUT_SHARE - 5 * (0.13 / total) ** 0.5


@pytest.mark.parametrize(("family", "level"), EVERY)
def test_same_arguments_same_problem(family, level):
    first = [problem(family, level, i, "train", "zh", seed=3) for i in range(10)]
    assert first == [problem(family, level, i, "train", "zh", seed=3) for i in range(10)]
    assert first != [problem(family, level, i, "train", "zh", seed=4) for i in range(10)]
    assert len({p.id for p in first}) == 10


def test_an_unknown_family_is_an_error():
    with pytest.raises(KeyError):
        problem("poetry", 1, 0, "train", "en")


# --- corpus ---


def test_corpus_is_reproducible_and_has_every_kind_of_document():
    def take(seed):
        return list(islice(documents(seed), 400))

    first = take("a")
    assert first == take("a")
    assert first != take("b")
    text = "\n".join(d.completion for d in first)
    for mark in ("<think>", "<answer>", "\\boxed{", "The answer is", "答案是"):
        assert mark in text
    assert {d.template for d in first} == {"plain", "chat"}
    assert all(d.text == f"User: {d.question}\nAssistant:{d.completion}" for d in first)


def test_corpus_holds_right_and_wrong_solutions(accuracy):
    """Otherwise the base model would have nothing to learn from its reward."""
    verdicts = Counter()
    for document in islice(documents("c"), 600):
        found = re.fullmatch(r"\D*?([-+*\d]+)\D*", document.question)
        answer = re.search(r"<answer>(-?\d+)</answer>", document.completion)
        if found and answer and re.search(r"\d[-+*]\d", found[1]):
            verdicts[int(answer[1]) == independent_value(found[1])] += 1
    assert verdicts[True] > 30
    assert verdicts[False] > 5


def test_corpus_has_no_held_out_question():
    held_out = {
        question(task, language, variant)
        for family, level in EVERY
        for task in tasks(family, level, 150, "held_out")
        for language in LANGUAGES
        for variant in range(6)
    }
    seen = {d.question for d in islice(documents("d"), 3000)}
    assert not seen & held_out


# --- pool ---


def test_a_draw_does_not_depend_on_chunks():
    pool = ProblemPool(ProblemsConfig(instruction_share=0.3), "train", seed=1)
    whole = pool.draw(0, 60)
    assert [p for start in range(0, 60, 7) for p in pool.draw(start, min(7, 60 - start))] == whole
    again = ProblemPool(ProblemsConfig(instruction_share=0.3), "train", seed=1)
    assert again.draw(30, 30) == whole[30:]
    assert ProblemPool(ProblemsConfig(instruction_share=0.3), "train", seed=2).draw(0, 60) != whole


def test_shares_of_a_draw():
    pool = ProblemPool(ProblemsConfig(instruction_share=0.25), "train", seed=0)
    drawn = pool.draw(0, 2000)
    domains = Counter(p.domain for p in drawn)
    assert domains["general"] == pytest.approx(500, abs=100)
    assert set(domains) == {*FAMILIES, "general"}
    assert all(domains[family] == pytest.approx(250, abs=50) for family in FAMILIES)
    assert Counter(p.language for p in drawn) == {"en": 1000, "zh": 1000}
    assert {p.metadata["level"] for p in drawn if p.domain != "general"} == set(LEVELS)
    assert not any(p.domain == "general" for p in pool.draw(0, 200, instruction_share=0.0))
    assert all(p.domain == "general" for p in pool.draw(0, 50, instruction_share=1.0))


def test_raising_the_instruction_share_keeps_the_other_problems():
    pool = ProblemPool(ProblemsConfig(), "train", seed=0)
    without, with_some = pool.draw(0, 200, 0.0), pool.draw(0, 200, 0.3)
    kept = [(a, b) for a, b in zip(without, with_some, strict=True) if b.domain != "general"]
    assert 100 < len(kept) < 180
    assert all(a == b for a, b in kept)


def test_pools_of_the_two_splits_share_no_question():
    train, held_out = (
        {p.question for p in ProblemPool(ProblemsConfig(), split, seed=0).draw(0, 3000)}
        for split in ("train", "held_out")
    )
    assert not train & held_out


@pytest.mark.parametrize(
    "settings",
    [{"families": ("chain_sums",)}, {"levels": (0,)}, {"levels": (4,)}, {"languages": ("fr",)}, {"levels": ()}],
)
def test_a_setting_there_is_no_data_for_is_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ProblemsConfig(**settings)


def test_own_problems_come_once_per_round_in_a_shuffled_order(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(f'{{"question": "What is {i}+1?", "answer": "{i + 1}"}}\n' for i in range(20)))
    config = ProblemsConfig.model_validate({"sources": [{"path": str(file), "row_schema": "columns"}]})
    pool = ProblemPool(config, "train", seed=0)
    rounds = [[p.question for p in pool.draw(start, 20)] for start in (0, 20)]
    assert set(rounds[0]) == set(rounds[1])
    assert len(set(rounds[0])) == 20
    assert rounds[0] != rounds[1]
    assert [p.question for p in pool.draw(15, 10)] == rounds[0][15:] + rounds[1][:5]
