"""The testing kit: case files, assertions, properties."""

import json

import pytest

from rewards.accuracy import Accuracy
from rewards.reward import Score
from rewards.testing import assert_scores, case, check_properties, load_cases, run_cases


def exact(problem, completion):
    """Right when the completion is the gold answer."""
    return completion.strip() == problem.ground_truth


def test_cases_are_compared_by_verdict_or_value():
    cases = [case("4", gold="4", expect="pass"), case("5", gold="4", expect=0.0), case("4", gold="4", expect=1)]
    assert [outcome.ok for outcome in run_cases(exact, cases)] == [True, True, True]
    assert_scores(exact, cases)


def test_failed_assertion_names_each_case_with_what_it_got():
    cases = [case("4", gold="4", expect="fail", name="four"), case("5", gold="4", expect="fail")]
    with pytest.raises(AssertionError, match=r"1 of 2 cases:\n'four': should be fail, got pass 1"):
        assert_scores(exact, cases)


def test_yaml_and_jsonl_hold_the_same_cases(tmp_path):
    rows = [{"completion": "4", "gold": 4, "expect": "pass"}, {"completion": "x", "gold": "4", "expect": 0.0}]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "cases.yaml").write_text(
        "reward: mine:exact\noptions: {a: 1}\ndefaults: {gold: '4'}\n"
        "cases:\n- {completion: '4', expect: pass}\n- {completion: x, expect: 0.0}\n"
    )
    from_jsonl, _ = load_cases(tmp_path / "cases.jsonl")
    from_yaml, settings = load_cases(tmp_path / "cases.yaml")
    assert from_jsonl == from_yaml
    assert settings == {"reward": "mine:exact", "options": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {completion: a}", "case 1: expect is missing"),
        ("- {expect: pass}", "case 1: completion is missing"),
        ("- {completion: a, expect: maybe}", "case 1: expect is 'maybe'"),
        ("- {completion: a, expect: pass, golt: 4}", "case 1: unknown key 'golt'"),
        ("- {completion: 4, expect: pass}", "case 1: completion is int, not text; write it in quotes"),
        ("- {completion: a, expect: pass, gold: yes}", "case 1: gold is True; write it in quotes"),
        ("- a", "case 1 is str"),
        ("{rewards: x}", "expected a list of cases"),
        ("[", "cannot be read"),
    ],
)
def test_wrong_case_files_are_one_sentence(tmp_path, text, message):
    file = tmp_path / "cases.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_cases(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gold", "wrong"), [("42", "41"), (r"\frac{1}{2}", "2"), (r"\sqrt{2}", r"\sqrt{3}"), ("x+1", "x")]
)
def test_our_accuracy_has_the_properties(gold, wrong):
    reward = Accuracy()
    check_properties(reward, gold=gold, wrong=wrong)
    reward.close()


def anything(problem, completion):
    return True


def in_the_text(problem, completion):
    return problem.ground_truth in completion


def crashes_when_empty(problem, completion):
    return completion[0] == problem.ground_truth


def first_box(problem, completion):
    return f"\\boxed{{{problem.ground_truth}}}" in completion.partition("</think>")[2]


@pytest.mark.parametrize("reward", [anything, in_the_text, first_box])
def test_rewards_without_the_properties_are_caught(reward):
    with pytest.raises(AssertionError):
        check_properties(reward, gold="42", wrong="41")


def test_an_error_is_no_pass_and_no_number():
    assert_scores(crashes_when_empty, [case("", gold="4", expect="error")])
    assert not run_cases(lambda problem, completion: Score.error("no"), [case("", expect=0.0)])[0].ok
