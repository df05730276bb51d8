"""Recorded steps taken again, and where two runs part."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data.problems import Problem
from rewards.reward import Score, Verdict
from rl.batch import TrainingSequence
from rl.experience import ScoredGroup
from rl.group_records import batch_file, drop_after, read_groups, recorded_steps, write_groups
from rl.objective import ObjectiveConfig
from rl.parting import first_difference
from rl.train import run
from rollouts.config import GeneratorConfig
from rollouts.records import Completion, Group, Support
from tests.test_rl_train import CONFIG, context_for
from training.stage import StageError


def completion(length, **kwargs) -> Completion:
    values = {
        "token_ids": np.arange(length, dtype=np.int32),
        "sampling_logprobs": np.linspace(-2, -0.1, length, dtype=np.float32),
        "policy_versions": np.full(length, 4, np.int32),
        "finish_reason": "stop",
        "text": "<think>\n1 < 2\n</think>",
    }
    return Completion(**values | kwargs)


def groups() -> list[ScoredGroup]:
    problem = Problem(
        id="sum-1", messages=({"role": "user", "content": "1 + 1?"},), ground_truth="2", checker="math",
        domain="chain_sum", language="en", metadata={"level": 1},
    )  # fmt: skip
    experts = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2)
    support = Support(ids=np.array([5, 6, 7], np.int32), sizes=np.array([1, 2], np.int32))
    whole = [completion(3, routed_experts=experts), completion(2, support=support, finish_reason="length")]
    scores = [
        Score(verdict=Verdict.PASS, value=1.5, parts={"accuracy": 1.0, "format": 0.5}, detail="found 2"),
        Score.error("the grader died", timed_out=True),
    ]
    open_ones = [completion(1, finish_reason="interrupted"), completion(0, finish_reason="interrupted", text="")]
    return [
        ScoredGroup(
            group=Group(key="0:sum-1", prompt_ids=[1, 2, 3], completions=whole), problem=problem, scores=scores
        ),
        ScoredGroup(
            group=Group(key="1:sum-1", prompt_ids=[1], completions=open_ones),
            problem=replace(problem, id="sum-2"),
            scores=[],
        ),
    ]


def plain(value):
    return json.loads(json.dumps(value, default=lambda found: getattr(found, "tolist", lambda: vars_of(found))()))


def vars_of(found):
    return {name: getattr(found, name) for name in type(found).__dataclass_fields__}


def test_groups_come_back_as_they_were_written(tmp_path):
    file = batch_file(tmp_path, 5)
    write_groups(file, 5, groups())
    assert plain(read_groups(file)) == plain(groups())
    write_groups(batch_file(tmp_path, 9), 9, [])
    assert read_groups(batch_file(tmp_path, 9)) == []
    assert recorded_steps(tmp_path) == [5, 9]
    drop_after(tmp_path, 8)
    assert recorded_steps(tmp_path) == [5]


# --- where two runs part ---


def record(folder, changed=None, metric=0.25, advantage=1.0):
    found = groups()[:1]
    sequence = TrainingSequence(
        prompt_ids=np.array([1, 2, 3]), completion_ids=np.arange(3), advantage=advantage,
        old_logprobs=np.full(3, -0.5, np.float32), group=0, sample=0,
    )  # fmt: skip
    if changed is not None:
        first, *others = found[0].group.completions
        group = replace(found[0].group, completions=[replace(first, **changed), *others])
        found = [replace(found[0], group=group)]
    folder.mkdir()
    for step in (1, 3):
        write_groups(batch_file(folder, step), step, found if step == 3 else groups()[:1], [sequence])
    rows = [{"step": step, "loss/policy": metric if step == 3 else 0.5} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("change", "what", "where", "one", "other"),
    [
        ({"changed": {"token_ids": np.array([0, 9, 2], np.int32)}}, "token_ids", "token 1", 1, 9),
        ({"changed": {"token_ids": np.array([0, 1], np.int32)}}, "token_ids", "token 2", 2, "ended before"),
        ({"changed": {"policy_versions": np.array([4, 4, 6], np.int32)}}, "policy_version", "token 2", 4, 6),
        ({"advantage": 0.5}, "advantage", "sample 0", 1.0, 0.5),
        ({"metric": 0.75}, "loss/policy", "", 0.25, 0.75),
    ],
)
def test_the_first_thing_that_differs_is_named(tmp_path, change, what, where, one, other):
    parting, step = first_difference(record(tmp_path / "a"), record(tmp_path / "b", **change))
    assert parting is not None and parting.what == what and where in parting.where
    assert (parting.one, parting.other) == (one, other)
    assert parting.step == step == (1 if "advantage" in change else 3)


def test_equal_runs_do_not_part(tmp_path):
    assert first_difference(record(tmp_path / "a"), record(tmp_path / "b")) == (None, 3)
    (tmp_path / "c").mkdir()
    assert first_difference(tmp_path / "a", tmp_path / "c") == (None, 0)


# --- real steps ---


@pytest.mark.slow
def test_recorded_steps_are_taken_again_bit_for_bit(ray_session, tiny_checkpoint, tmp_path):
    """With the generator's experts and completions of several policies."""
    from rl.rerun import rerun

    config = CONFIG.model_copy(
        update={
            "max_staleness": 2,
            "generator": GeneratorConfig(replicas=1, max_slots=20),
            "objective": ObjectiveConfig(preset="v3_2"),
            "reference_every": 2,
        }
    )
    recorded = tmp_path / "recorded"
    run(config, context_for(tiny_checkpoint, recorded))

    def again(last, config=config):
        return list(rerun(config, context_for(tiny_checkpoint, tmp_path / f"again{last}"), recorded, last))

    taken = again(11)  # the checkpoint of step 8 is there
    assert [step.step for step in taken] == [9, 10, 11]
    assert all(step.differing == [] and step.again["optimizer/grad_norm"] > 0 for step in taken)
    sleeping = config.generator.model_copy(update={"engine": "vllm", "sleep": True})  # there are none to put to sleep
    assert again(9, config.model_copy(update={"generator": sleeping}))[0].differing == []
    shutil.rmtree(recorded / "checkpoints")
    other = config.model_copy(update={"objective": ObjectiveConfig(preset="v3_2", kl_coef=0.5)})
    first, second, third = again(3, other)  # from the policy on, of which the KL is 0
    assert first.differing == [] and "loss/policy" in second.differing + third.differing
    batch_file(recorded, 3).unlink()
    with pytest.raises(StageError, match=r"step_00000003\.parquet was not kept"):
        again(5)
