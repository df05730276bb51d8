import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.advantage import assign_advantages, group_advantages, overlong_penalty
from rl.objective import PRESETS

REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 1.0, 1.1]), st.floats(-5, 5)), max_size=16)


def reference(rewards, divide_by_std):
    """DeepSeek-R1 eq. 3 by loops; population standard deviation; zero without spread."""
    known = [r for r in rewards if r is not None]
    if len(known) < 2 or max(known) - min(known) <= 1e-9:
        return [None if r is None else 0.0 for r in rewards]
    mean = math.fsum(known) / len(known)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / len(known))
    return [None if r is None else (r - mean) / (std if divide_by_std else 1.0) for r in rewards]


def same(got, expected, rel=1e-10):
    assert [a is None for a in got] == [a is None for a in expected]
    numbers = ([a for a in side if a is not None] for side in (got, expected))
    assert next(numbers) == pytest.approx(next(numbers), rel=rel, abs=1e-10)


@given(REWARDS, st.booleans())
def test_advantages_equal_the_loop_reference(rewards, divide_by_std):
    # A spread just above the tolerance leaves seven digits of a reward of size one.
    same(group_advantages(rewards, divide_by_std).advantages, reference(rewards, divide_by_std), rel=1e-6)


# Sums of a few weighted terms, as rewards are: on a grid of tenths, so that different rewards differ by rounding never.
RAGGED = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(-10, 30).map(lambda n: n / 10)), st.integers(1, 100)),
    min_size=1,
    max_size=16,
)


@pytest.mark.parametrize("preset", PRESETS)
@given(RAGGED)
def test_advantages_of_every_preset(preset, group):
    """Ragged groups with unscorable completions, exact to 1e-10; DAPO's overlong penalty (eq. 13) by its cases."""
    rewards, lengths = [reward for reward, _ in group], [length for _, length in group]
    got = assign_advantages(rewards, lengths, [length == 100 for length in lengths], 100, PRESETS[preset])
    known = {r for r in rewards if r is not None}
    assert got.has_signal == (len(known) > 1)
    shaped = list(rewards)
    if preset == "dapo":
        for i, length in enumerate(lengths):
            if rewards[i] is not None and length > 80:
                shaped[i] = rewards[i] + (80 - length) / 20
    expected = reference(shaped, divide_by_std=preset in ("r1", "dapo", "gspo"))
    if preset == "dapo" and len(known) < 2:
        expected = [None] * len(rewards)
    same(got.advantages, expected)


@given(REWARDS)
def test_advantages_have_zero_mean_and_unit_std(rewards):
    group = group_advantages(rewards, divide_by_std=True)
    known = [a for a in group.advantages if a is not None]
    if group.has_signal:
        assert math.fsum(known) == pytest.approx(0, abs=1e-5)
        assert math.fsum(a * a for a in known) / len(known) == pytest.approx(1, rel=1e-5)
    else:
        assert all(a == 0.0 for a in known)


def test_unscorable_completions_change_nothing_for_the_others():
    with_none = group_advantages([None, 1.0, 0.0, None, 0.0], divide_by_std=True)
    without = group_advantages([1.0, 0.0, 0.0], divide_by_std=True)
    assert [a for a in with_none.advantages if a is not None] == without.advantages
    assert with_none.advantages[0] is None and with_none.advantages[3] is None


@pytest.mark.parametrize("rewards", [[1.0, 1.0], [None, 1.0], [None, None], [0.1 + 0.2, 0.3], [0.7], []])
def test_groups_without_signal_get_zero_not_noise(rewards):
    """0.1 + 0.2 and 0.3 differ by rounding only; dividing that by its own std would give advantages of 1."""
    group = group_advantages(rewards, divide_by_std=True)
    assert not group.has_signal
    assert group.advantages == [None if r is None else 0.0 for r in rewards]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite number"):
        group_advantages([0.0, bad], divide_by_std=True)


def test_dynamic_sampling_drops_groups_without_signal_and_only_those():
    flat = assign_advantages([1.0, 1.0], [5, 5], [False] * 2, 100, PRESETS["dapo"])
    assert flat.advantages == [None, None] and not flat.has_signal
    mixed = assign_advantages([1.0, 0.0], [5, 5], [False] * 2, 100, PRESETS["dapo"])
    assert mixed.advantages == [1.0, -1.0]
    kept = assign_advantages([1.0, 1.0], [5, 5], [False] * 2, 100, PRESETS["r1"])
    assert kept.advantages == [0.0, 0.0]


def test_dynamic_sampling_judges_before_the_length_penalty():
    """All correct, one too long: DAPO drops the group, although the penalty would make a difference."""
    group = assign_advantages([1.0, 1.0], [5, 100], [False, True], 100, PRESETS["dapo"])
    assert group.advantages == [None, None]


def test_soft_overlong_lowers_the_reward_of_the_longest():
    objective = replace(PRESETS["dapo"], advantage_std=False)
    group = assign_advantages([1.0, 1.0, 0.0], [80, 90, 100], [False, False, True], 100, objective)
    mean = (1.0 + 0.5 - 1.0) / 3
    assert group.advantages == pytest.approx([1.0 - mean, 0.5 - mean, -1.0 - mean])


def test_masked_truncated_completions_are_not_trained_but_count_in_the_mean():
    objective = replace(PRESETS["r1"], overlong="mask", advantage_std=False)
    group = assign_advantages([1.0, 0.0, 0.0], [5, 5, 100], [False, False, True], 100, objective)
    assert group.advantages == [pytest.approx(2 / 3), pytest.approx(-1 / 3), None]


@pytest.mark.parametrize(
    "length, penalty", [(1, 0.0), (16384, 0.0), (16385, -1 / 4096), (18432, -0.5), (20480, -1.0), (30000, -1.0)]
)
def test_overlong_penalty_at_the_numbers_of_the_dapo_paper(length, penalty):
    assert overlong_penalty(length, max_length=20480, buffer=4096) == pytest.approx(penalty)


def test_overlong_buffer_longer_than_the_completion_is_refused():
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(5, max_length=10, buffer=11)
