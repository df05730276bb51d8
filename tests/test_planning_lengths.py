import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planning.lengths import Lengths, cut_mean


@given(share=st.floats(0.01, 0.95), longest=st.integers(8, 100_000), sigma=st.floats(0.05, 1.2))
def test_the_mean_is_what_was_asked_for(share, longest, sigma):
    lengths = Lengths(share * longest, longest, sigma)
    sample = lengths.sample()
    assert sample == sorted(sample) and sample[-1] <= longest
    assert sum(sample) / len(sample) == pytest.approx(lengths.mean, rel=0.06)


@given(share=st.floats(0.01, 0.95), sigma=st.floats(0.05, 2), counts=st.tuples(st.integers(1, 9), st.integers(10, 999)))
def test_more_completions_have_a_longer_longest(share, sigma, counts):
    lengths = Lengths(share * 1000, 1000, sigma)
    assert lengths.longest_of(counts[0]) <= lengths.longest_of(counts[1]) <= 1000
    assert 0 <= lengths.truncated < 1


def test_without_spread_all_are_equal():
    lengths = Lengths(50, 100, 0)
    assert set(lengths.sample()) == {50}
    assert lengths.longest_of(10**6) == 50 and lengths.mean_square == 2500 and lengths.truncated == 0
    assert Lengths(100, 100, 0.8).truncated == 1


def test_the_mean_of_a_cut_lognormal_is_that_of_its_integral():
    location, longest, sigma, steps = math.log(300), 1000, 0.8, 20_000
    values = (math.exp(location + sigma * NormalDist().inv_cdf((i + 0.5) / steps)) for i in range(steps))
    assert cut_mean(location, longest, sigma) == pytest.approx(sum(min(v, longest) for v in values) / steps, rel=1e-3)
