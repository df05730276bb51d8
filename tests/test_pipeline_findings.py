"""Verdicts follow the interval of the difference and nothing else."""

import random

import pytest

from pipeline.findings import FINDINGS, MIN_PROBLEMS, Outcome, check_findings, combine, judge
from pipeline.statistics import Estimate


def _completions(checkpoint, accuracy, *, problems=60, k=4, language=1.0, formatted=1.0, seed=0):
    rng = random.Random(f"{checkpoint}{seed}")
    return [
        {
            "checkpoint": checkpoint,
            "problem_id": f"p{i}",
            "verdict": "pass" if rng.random() < accuracy else "fail",
            "language_consistency": language + rng.uniform(-0.01, 0.01),
            "format": rng.random() < formatted,
        }
        for i in range(problems)
        for _ in range(k)
    ]


def _check(*parts):
    return {checked.finding.key: checked for checked in check_findings([row for part in parts for row in part])}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.01, 0.2, Outcome.HOLDS),
        (-0.2, -0.01, Outcome.FAILS),
        (-0.1, 0.1, Outcome.NOISE),
        (0.0, 0.3, Outcome.NOISE),
        (-0.3, 0.0, Outcome.NOISE),
        (0.0, 0.0, Outcome.NOISE),
    ],
)
def test_a_difference_inside_its_interval_is_noise(low, high, expected):
    assert judge(Estimate(mean=(low + high) / 2, low=low, high=high, n_problems=50)) is expected


def test_rl_that_lifts_the_base_holds_and_meets_its_target():
    checked = _check(_completions("base", 0.05), _completions("zero", 0.6))["rl_lifts_base"]
    assert checked.outcome is Outcome.HOLDS
    assert checked.target is not None and checked.target.met
    claim = checked.claims[0]
    assert claim.difference is not None and claim.higher is not None and claim.lower is not None
    assert claim.difference.mean == pytest.approx(claim.higher - claim.lower)


def test_a_small_gain_holds_but_misses_its_target():
    checked = _check(_completions("base", 0.3, problems=400), _completions("zero", 0.45, problems=400))["rl_lifts_base"]
    assert checked.outcome is Outcome.HOLDS
    assert checked.target is not None and not checked.target.met


def test_a_loss_does_not_hold_and_no_change_is_noise():
    assert _check(_completions("dev1", 0.8), _completions("dev2", 0.3))["rl_restores"].outcome is Outcome.FAILS
    same = _completions("dev1", 0.5)
    copied = [row | {"checkpoint": "dev2"} for row in same]
    assert _check(same, copied)["rl_restores"].outcome is Outcome.NOISE


def test_target_of_exactly_the_wanted_size_is_met():
    rows = [
        {"checkpoint": name, "problem_id": f"p{i}", "verdict": "pass" if i < solved else "fail"}
        for name, solved in (("dev1", 7), ("dev2", 8))
        for i in range(10)
    ]
    checked = _check(rows)["rl_restores"]
    assert checked.target is not None and checked.target.met


def test_missing_checkpoints_and_few_problems_are_not_measured():
    checked = _check(_completions("zero", 0.5))
    assert {c.outcome for c in checked.values()} == {Outcome.UNMEASURED}
    assert checked["rl_lifts_base"].reason == "No scored completions of base."
    few = MIN_PROBLEMS - 1
    checked = _check(_completions("base", 0.0, problems=few), _completions("zero", 1.0, problems=few))
    assert checked["rl_lifts_base"].outcome is Outcome.UNMEASURED
    assert "Fewer than" in checked["rl_lifts_base"].reason
    assert {c.outcome for c in check_findings([])} == {Outcome.UNMEASURED}


def test_preference_hacking_says_why_it_is_not_measured():
    checked = _check()["preference_hacking"]
    assert checked.outcome is Outcome.UNMEASURED and "reward_hacking.yaml" in checked.reason


def test_readability_is_language_consistency_whatever_the_layout():
    zero = _completions("zero", 0.5, language=0.9, formatted=1.0)
    checked = _check(zero, _completions("dev1", 0.4, language=0.97, formatted=0.5))["cold_start_readable"]
    assert checked.outcome is Outcome.HOLDS


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ("HOLDS HOLDS", "HOLDS"),
        ("HOLDS FAILS", "FAILS"),
        ("UNMEASURED NOISE FAILS", "FAILS"),
        ("HOLDS NOISE", "NOISE"),
        ("NOISE UNMEASURED", "NOISE"),
        ("HOLDS UNMEASURED", "UNMEASURED"),
        ("", "UNMEASURED"),
    ],
)
def test_a_finding_holds_when_all_of_its_claims_hold(outcomes, expected):
    assert combine([Outcome[name] for name in outcomes.split()]) is Outcome[expected]


def test_language_target_is_a_level_of_r1():
    rows = [*_completions("dev1", 0.5, language=0.97), *_completions("dev2", 0.5, language=0.97)]
    checked = _check(rows, _completions("r1", 0.5, language=0.95))["language_reward"]
    assert checked.outcome is Outcome.HOLDS
    assert checked.target is not None and not checked.target.met
    assert checked.target.value.mean == pytest.approx(0.95, abs=0.01)


def test_consistency_may_fall_by_less_than_a_point_and_its_cause_takes_an_ablation():
    dev1 = _completions("dev1", 0.5, language=0.97)
    same = _check(dev1, [row | {"checkpoint": "dev2"} for row in dev1])["language_reward"]
    assert same.outcome is Outcome.HOLDS and len(same.claims) == 1
    assert "dev2_no_language" in same.reason
    assert _check(dev1, _completions("dev2", 0.5, language=0.9))["language_reward"].outcome is Outcome.FAILS
    dev2 = _completions("dev2", 0.5, language=0.97)
    ablated = _check(dev1, dev2, _completions("dev2_no_language", 0.5, language=0.9))["language_reward"]
    assert ablated.outcome is Outcome.HOLDS and len(ablated.claims) == 2 and not ablated.reason
    useless = _check(dev1, dev2, [row | {"checkpoint": "dev2_no_language"} for row in dev2])["language_reward"]
    assert useless.outcome is Outcome.NOISE


def test_unscorable_completions_do_not_count_as_failures():
    base = _completions("base", 0.2)
    zero = _completions("zero", 0.9)
    broken = [row | {"verdict": "error"} for row in zero for _ in range(5)]
    clean, dirty = (_check(base, zero, extra)["rl_lifts_base"] for extra in ([], broken))
    assert clean.claims == dirty.claims


def test_every_finding_cites_the_paper():
    assert all(finding.paper and finding.claims for finding in FINDINGS)
    assert len({finding.key for finding in FINDINGS}) == len(FINDINGS)


def test_the_utility_of_general_answers_is_compared_on_general_problems_alone():
    """Reasoning rows have none; and a general answer that passes is no gain in pass@1."""

    def general(checkpoint, utility):
        rows = _completions(checkpoint, 1.0, seed=1)
        return [{**row, "problem_id": f"g{row['problem_id']}", "domain": "general", "utility": utility} for row in rows]

    dev1 = _completions("dev1", 0.5)
    parts = [_completions("dev3", 0.5), general("dev3", 0.4), _completions("r1", 0.5), general("r1", 0.55), dev1]
    checked = _check(*parts)["general_rl_helps"]
    assert checked.outcome is Outcome.HOLDS and checked.target is not None and checked.target.met
    assert checked.claims[0].difference.mean == pytest.approx(0.15)
    assert checked.claims[0].difference.n_problems == 60
    assert _check(*parts)["chain_gains"].claims[0].higher < 0.7  # of reasoning alone
