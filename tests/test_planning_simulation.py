"""The simulated schedule: closed forms where there are any, and what must hold whatever happens."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.lengths import Lengths
from planning.simulation import Schedule, simulate

EQUAL = Schedule(
    replicas=4, slots=8, token_s=0.01, lengths=Lengths(100, 400, 0), batch=32, train_s=3, sync_s=0.5, staleness=0,
    batches=20,
)  # fmt: skip
SPREAD = replace(EQUAL, lengths=Lengths(100, 400, 0.8))


def test_without_staleness_a_batch_takes_the_sum_of_its_phases():
    found = simulate(EQUAL)
    assert found.ends == pytest.approx([(k + 1) * (100 * 0.01 + 3 + 0.5) for k in range(20)])
    assert found.staleness == 0


@pytest.mark.parametrize("batch", [33, 64, 65, 200])
def test_fewer_slots_than_completions_work_in_waves(batch):
    found = simulate(replace(EQUAL, batch=batch))
    assert found.batch_s == pytest.approx(math.ceil(batch / 32) * 1.0 + 3.5)


@pytest.mark.parametrize("train_s", [0.1, 1.0, 3.0])
def test_with_staleness_a_batch_takes_its_slower_phase(train_s):
    found = simulate(replace(EQUAL, train_s=train_s, batch=64, staleness=2))
    assert found.batch_s == pytest.approx(max(2.0, train_s) + 0.5)


def test_a_batch_waits_for_its_longest_completion():
    slots_for_all = replace(SPREAD, slots=100, batch=400, batches=10)
    found, longest = simulate(slots_for_all), SPREAD.lengths.longest_of(400)
    assert found.batch_s == pytest.approx(longest * 0.01 + 3.5, rel=0.03)


@settings(max_examples=12)
@given(seed=st.integers(0, 99), batch=st.integers(8, 80), train_s=st.floats(0.1, 5), sigma=st.floats(0.1, 1.5))
def test_more_staleness_is_never_slower(seed, batch, train_s, sigma):
    schedule = replace(SPREAD, seed=seed, batch=batch, train_s=train_s, sync_s=0.0, lengths=Lengths(100, 400, sigma))
    ends = [simulate(replace(schedule, staleness=s)).ends[-1] for s in (0, 1, 2, 4)]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(ends))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), staleness=st.integers(0, 4), rate=st.floats(0, 0.05), checkpoint=st.integers(1, 4))
def test_no_completion_is_lost_or_trained_twice(seed, staleness, rate, checkpoint):
    found = simulate(
        replace(
            SPREAD, seed=seed, staleness=staleness, replica_failures=rate, trainer_failures=rate, restart_s=2.0,
            checkpoint_every=checkpoint,
        )
    )  # fmt: skip
    assert found.trained == 20 * 32
    assert found.begun == found.finished + found.running + found.waiting
    assert found.trained <= found.finished <= found.begun <= (20 + staleness + 1) * 32
    assert found.staleness <= staleness
    assert (found.lost > 0) <= (found.failures > 0)


def test_failures_cost_time_and_no_tokens():
    calm = simulate(replace(SPREAD, staleness=1))
    rough = simulate(replace(SPREAD, staleness=1, replica_failures=0.02, trainer_failures=0.02, restart_s=5.0))
    assert rough.failures > 0 and rough.ends[-1] > calm.ends[-1]
    assert rough.tokens == pytest.approx(calm.tokens)


def test_a_schedule_repeats_itself():
    schedule = replace(SPREAD, staleness=2, replica_failures=0.01, restart_s=1.0)
    assert simulate(schedule).ends == simulate(schedule).ends


def test_four_thousand_devices_are_simulated_in_no_time():
    big = replace(SPREAD, replicas=128, slots=64, batch=8192, batches=6, staleness=1)
    assert simulate(big).trained == 6 * 8192
