"""Fitting constants to measurements. What is measured is for benchmarks/plan_accuracy.py to judge."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.architecture import Architecture
from planning.calibration import PassCosts
from planning.measure import Point, _fit, _pass_amounts, non_negative
from planning.published import SHAPES

LLAMA = Architecture.read(SHAPES["smollm2-135m"], "m")


@settings(max_examples=20)
@given(seed=st.integers(0, 999), features=st.integers(1, 5))
def test_constants_that_made_the_times_are_found(seed, features):
    rng = np.random.default_rng(seed)
    matrix, truth = rng.random((20, features)), rng.random(features) * (rng.random(features) > 0.3)
    found = non_negative(matrix, matrix @ truth)
    assert np.allclose(found, truth, atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_no_constant_is_negative_and_none_moved_alone_would_fit_better(seed):
    rng = np.random.default_rng(seed)
    matrix, wanted = rng.random((12, 4)), rng.random(12)
    found = non_negative(matrix, wanted)
    assert (found >= 0).all()
    slope = matrix.T @ (matrix @ found - wanted)
    assert np.allclose(slope[found > 0], 0, atol=1e-6) and (slope[found == 0] >= -1e-6).all()


def test_a_fit_is_by_relative_errors_and_in_the_order_of_the_fields():
    costs = PassCosts(
        dense_flop=2e-11, expert_flop=0, attention_flop=5e-11, element=1e-9, logit=3e-9, layer=4e-4, moe_layer=0
    )
    shapes = [(1, 16), (1, 500), (16, 64), (3, 256), (40, 8), (2, 1000)]
    amounts = [_pass_amounts(LLAMA, *shape) for shape in shapes]
    seconds = [sum(a * c for a, c in zip(one, costs.model_dump().values(), strict=True)) for one in amounts]
    found, error = _fit([Point(*pair) for pair in zip(amounts, seconds, strict=True)])
    assert error < 0.01 and len(found) == len(PassCosts.model_fields)
