"""The watch for reward hacking: when a reward and what it stands for have parted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.reward_watch import Check, RewardWatch, paired_difference


def check(**means: float) -> Check:
    """64 problems of each kind whose values scatter around these means."""
    rng, found = np.random.default_rng(0), Check()
    for judge, mean in means.items():
        scatter = rng.normal(0, 0.1, 64)
        for number, noise in enumerate(scatter - scatter.mean()):
            found.note(judge, f"p{number}", mean + noise)
    return found


WELL = {"reward": 0.5, "accuracy": 0.8, "second": 0.7, "length": 20.0}


def compare(**now: float):
    watch = RewardWatch(comparisons=1, risk=0.05, length_factor=2.0)
    assert watch.compare(check(**WELL)).alert == ""
    rng = np.random.default_rng(1)
    second = check(**WELL | now)
    for judge in ("reward", "accuracy", "second"):  # not all differences are the same
        for problem in second.values[judge]:
            second.values[judge][problem] += rng.normal(0, 0.02)
    return watch.compare(second)


@pytest.mark.parametrize(
    ("now", "says"),
    [
        ({"reward": 0.8, "second": 0.5}, "the second judge went from 0.7"),
        ({"reward": 0.8, "accuracy": 0.6}, "held-out accuracy went from 0.8"),
        ({"reward": 0.8, "length": 50.0}, "length of general answers went from 20 to 50 tokens"),
    ],
)
def test_a_rising_reward_with_a_falling_judge_is_an_alert(now, says):
    found = compare(**now)
    assert says in found.alert and "is being hacked" in found.alert and found.metrics["watch/parted"] == 1
    assert found.metrics["watch/reward"] == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    "now",
    [
        {"reward": 0.8, "second": 0.8, "accuracy": 0.85},  # it is getting better
        {"reward": 0.4, "second": 0.5},  # everything falls: no hacking, another fault
        {"second": 0.5},  # the reward stands still
        {"reward": 0.8, "length": 30.0},
        {},
    ],
)
def test_what_is_no_hacking_raises_no_alert(now):
    found = compare(**now)
    assert found.alert == "" and found.metrics["watch/parted"] == 0


def noisy(rng, **shift: float) -> Check:
    found = Check()
    for judge in ("reward", "accuracy", "second", "length"):
        for number, value in enumerate(rng.normal(1, 0.3, 64)):
            found.note(judge, f"{number}", value + shift.get(judge, 0.0))
    return found


def test_a_run_that_gets_better_is_hardly_ever_alerted_however_often_it_is_looked_at():
    """The reward rises for good reasons and the other judges stand still: one run in twenty, at most."""
    rng, alerted = np.random.default_rng(0), 0
    for _ in range(200):
        watch = RewardWatch(comparisons=25, risk=0.05, length_factor=2.0)
        watch.compare(noisy(rng))
        alerts = [watch.compare(noisy(rng, reward=1.0)).alert for _ in range(25)]
        alerted += any(alerts)
    assert alerted <= 16


def test_unscorable_answers_and_other_problems_are_left_out():
    first = {f"{number}": number / 10 for number in range(10)}
    now = {problem: value + 0.1 for problem, value in first.items() if problem != "0"} | {"other": 9.0}
    assert paired_difference(first, now) == pytest.approx((0.1, 0.0))
    assert paired_difference(first, {f"{number}": 1.0 for number in range(7)}) is None  # too few to have an error


def test_a_judge_that_fails_at_first_is_compared_with_what_it_says_later():
    """And that nobody watched meanwhile is said."""
    rng, watch = np.random.default_rng(0), RewardWatch(2, 0.05, 2.0)
    silent = noisy(rng)
    silent.values["second"] = {}
    for number in range(64):
        silent.note("second", f"{number}", None)
    found = watch.compare(silent)
    assert found.blind == "the watch cannot compare second (0 judged, 64 unscorable)"
    assert found.metrics["watch/unscorable"] == 64 and "watch/second" not in found.metrics
    assert watch.compare(noisy(rng)).alert == ""
    found = watch.compare(noisy(rng, reward=0.5, second=-0.5))
    assert "the second judge went from" in found.alert and found.blind == ""


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=20), st.floats(-1, 1))
def test_the_difference_is_paired(values, shift):
    first = {str(number): value for number, value in enumerate(values)}
    mean, error = paired_difference(first, {problem: value + shift for problem, value in first.items()})
    assert mean == pytest.approx(shift, abs=1e-9) and error == pytest.approx(0, abs=1e-9)


def test_the_first_check_survives_a_restart(tmp_path):
    watch = RewardWatch(1, 0.05, 2.0)
    watch.compare(check(**WELL))
    watch.save(tmp_path / "watch.json")
    again = RewardWatch(1, 0.05, 2.0)
    again.load(tmp_path / "watch.json")
    assert again.first == watch.first
    assert again.compare(check(**WELL | {"reward": 0.9, "second": 0.4})).alert
    fresh = RewardWatch(1, 0.05, 2.0)
    fresh.load(tmp_path / "missing.json")
    assert fresh.first == {}
