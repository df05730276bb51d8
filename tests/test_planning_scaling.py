"""The curve of tokens per second against devices, and the page that shows it."""

from dataclasses import replace

import pytest

from pipeline.plan_scaling import render
from planning.architecture import Architecture
from planning.assumptions import Assumptions
from planning.devices import parse_cluster
from planning.published import SHAPES
from planning.scaling import CannotScale, scaling
from planning.workload import DatasetSize, Request
from rl.config import GRPOConfig
from sft.config import SFTConfig

LLAMA = Architecture.read(SHAPES["llama-3.1-8b"], "Llama-3.1-8B")
CLUSTER = parse_cluster("8x8xH100")
GENERATOR = {"engine": "vllm", "dtype": "bfloat16", "tensor_parallel": 2}
TRAINER = {"precision": "bfloat16", "mesh": {"data": 8}}


def grpo() -> Request:
    config = GRPOConfig.model_validate(
        {"steps": 64, "mini_batches": 4, "questions_per_step": 8, "generator": GENERATOR, "trainer": TRAINER}
    )
    return Request(name="zero", kind="grpo", config=config, models={"policy": LLAMA})


@pytest.fixture(scope="module")
def points():
    return scaling(grpo(), CLUSTER, Assumptions(), devices=(16, 64), staleness=(0, 1, 2))


def test_more_devices_are_faster_and_never_beyond_ideal(points):
    for bound in (0, 1, 2):
        few, many = (point for point in points if point.staleness == bound)
        assert few.tokens_per_s < many.tokens_per_s < 4 * few.tokens_per_s * 1.1


def test_staleness_hides_long_completions_where_devices_are_many(points):
    many = [point.tokens_per_s for point in points if point.devices == 64]
    assert many[0] < many[2] and many[1] <= many[2] * 1.05
    assert all(point.outcome.staleness <= point.staleness for point in points)
    assert all(point.generators == point.devices for point in points if point.staleness == 0)


def test_the_page_needs_nothing_else_and_names_every_curve(points):
    page = render("Scaling of zero", points, [replace(points[-1], staleness=2)])
    assert 'http-equiv="Content-Security-Policy"' in page and "<script src" not in page
    for said in ("staleness 0", "staleness 2, failures", "ideal", "Scaling of zero"):
        assert said in page


def test_a_stage_that_only_trains_has_no_schedule():
    size = DatasetSize(rows=100, tokens=100, longest=200, known=True)
    request = Request(name="sft", kind="sft", config=SFTConfig(), models={"policy": LLAMA}, dataset=size)
    with pytest.raises(CannotScale, match=r"stage 'sft' \(sft\) does not sample what it trains on"):
        scaling(request, CLUSTER, Assumptions())
