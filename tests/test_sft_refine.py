"""Refining Zero's completions: the layout changes, steps and answer do not."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.chat import parse_completion
from data.problems import Problem
from data.schemas import last_boxed
from rollouts.records import Completion, Group, SamplingParams
from sft.refine import SUMMARIES, ModelRefiner, RuleRefiner, reasoning_and_answer, refine_prompt

PROBLEM = Problem(
    id="p",
    messages=({"role": "user", "content": "What is 3 + 4?"},),
    ground_truth="7",
    checker="math",
    domain="sum",
    language="en",
)
ZERO = "<think> 3 + 4\n= 7 </think> <answer> 7 </answer>"


def refine(problem, completion, seed=0):
    return RuleRefiner(seed).refine([(problem, completion)])[0]


def test_layout_is_r1s():
    refined = refine(PROBLEM, ZERO)
    assert refined.startswith("<think>\n3 + 4\n= 7\n</think>\n\n")
    assert refined.partition("</think>\n\n")[2] in {summary.format(answer="7") for summary in SUMMARIES["en"]}


@given(
    st.text(alphabet="abc 123+=\n天", min_size=1).filter(str.strip),
    st.text(alphabet="x123+-/ ,", min_size=1).filter(str.strip),
    st.sampled_from(["en", "zh"]),
)
def test_steps_and_answer_survive(steps, answer, language):
    refined = refine(replace(PROBLEM, language=language), f"<think>{steps}</think> <answer>{answer}</answer>")
    parsed = parse_completion(refined)
    assert parsed.reasoning == steps.strip()
    assert last_boxed(parsed.final) == answer.strip()
    assert ("答案" in parsed.final) == (language == "zh")


def test_variants_depend_on_seed_and_problem_alone():
    assert refine(PROBLEM, ZERO) == refine(PROBLEM, ZERO)
    variants = {refine(replace(PROBLEM, id=f"p{number}"), ZERO) for number in range(50)}
    assert len(variants) == len(SUMMARIES["en"])
    pairs = [(replace(PROBLEM, id=f"p{number}"), ZERO) for number in range(5)]
    assert RuleRefiner(3).refine(pairs) == RuleRefiner(3).refine(pairs[::-1])[::-1]


@pytest.mark.parametrize(
    "completion",
    [
        "7",
        "<think> 3 + 4 </think> 7",
        "<think></think> <answer> 7 </answer>",
        "<think> 3 </think> <answer> 7 </answer> <answer> 8 </answer>",
        "<think> 3 </think> <answer></answer>",
        "<think> 3 </think> <answer> 7} </answer>",
        "<think> 3 </think> <answer> 7\n8 </answer>",
        "<think> 3 <answer> 7 </answer>",
    ],
)
def test_what_cannot_be_refined_is_none(completion):
    assert refine(PROBLEM, completion) is None


@pytest.mark.parametrize(
    ("written", "bare"), [("\\boxed{7}", "7"), ("$\\frac{1}{2}$", "\\frac{1}{2}"), ("\\{1\\}", "\\{1\\}")]
)
def test_answers_are_boxed_once(written, bare):
    assert reasoning_and_answer(f"<think> s </think> <answer> {written} </answer>") == ("s", bare)


class ScriptedGenerator:
    policy_version = 0

    def __init__(self, texts, finish_reason="stop"):
        self.texts, self.finish_reason, self.requests = texts, finish_reason, []

    def sample(self, requests, params):
        self.requests += requests
        return [self._group(request, text) for request, text in zip(requests, self.texts, strict=True)]

    def load_weights(self, tensors, version):
        raise NotImplementedError

    def _group(self, request, text):
        completion = Completion(
            token_ids=np.zeros(1, np.int32),
            sampling_logprobs=np.zeros(1, np.float32),
            policy_versions=np.zeros(1, np.int32),
            finish_reason=self.finish_reason,
            text=text,
        )
        return Group(key=request.key, prompt_ids=request.prompt_ids, completions=[completion])


class LetterTokenizer:
    chat_template = "letters"
    added_tokens_decoder: ClassVar[dict] = {}
    all_special_tokens: ClassVar[list] = []

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return messages[-1]["content"]

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(character) for character in text]}


def refine_with_model(texts, pairs, **keys):
    generator = ScriptedGenerator(texts, **keys)
    refined = ModelRefiner(generator, LetterTokenizer(), SamplingParams(max_new_tokens=50)).refine(pairs)
    return refined, generator


def test_model_writes_the_summary_and_keeps_the_steps():
    pairs = [(PROBLEM, "unusable"), (PROBLEM, ZERO)]
    refined, generator = refine_with_model(["<think>hm</think>We add: $3 + 4 = \\boxed{ 7 }$."], pairs)
    assert refined == [None, "<think>\n3 + 4\n= 7\n</think>\n\nWe add: $3 + 4 = \\boxed{ 7 }$."]
    [request] = generator.requests
    assert "".join(map(chr, request.prompt_ids)) == refine_prompt(PROBLEM, "3 + 4\n= 7", "7")


def test_model_may_not_change_or_forget_the_answer():
    assert refine_with_model(["It is \\boxed{8}."], [(PROBLEM, ZERO)])[0] == [None]
    assert refine_with_model(["It is 7."], [(PROBLEM, ZERO)])[0] == [None]
    assert refine_with_model(["It is \\boxed{7}"], [(PROBLEM, ZERO)], finish_reason="length")[0] == [None]


def test_model_refiner_takes_one_summary_per_completion():
    with pytest.raises(ValueError, match="group_size must be 1"):
        ModelRefiner(ScriptedGenerator([]), LetterTokenizer(), SamplingParams(max_new_tokens=5, group_size=2))


def test_prompt_holds_question_thoughts_answer_and_language():
    problem = replace(PROBLEM, language="zh", messages=({"role": "user", "content": "{x} 是几？"},))
    prompt = refine_prompt(problem, "先算 {y}", "\\frac{1}{2}")
    assert all(part in prompt for part in ("{x} 是几？", "先算 {y}", "\\frac{1}{2}", "Chinese", "\\boxed{}"))
