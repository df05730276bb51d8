"""From scored groups to training sequences: every completion is accounted for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import Problem
from rewards.reward import Score
from rl.experience import ScoredGroup, counts, rollout_metrics, sample_rows, training_sequences
from rl.objective import ObjectiveConfig
from rollouts.records import Completion, Group, Support

MAX_NEW_TOKENS = 8


def scored_group(rewards, lengths=None, domain="chain_sum", key="0") -> ScoredGroup:
    lengths = lengths or [3] * len(rewards)
    problem = Problem(
        id=key, messages=({"role": "user", "content": "1+1?"},), ground_truth="2", checker="math", domain=domain,
        language="en",
    )  # fmt: skip
    completions = [
        Completion(
            token_ids=np.arange(n, dtype=np.int32), sampling_logprobs=np.full(n, -0.5, dtype=np.float32),
            policy_versions=np.zeros(n, np.int32), finish_reason="length" if n == MAX_NEW_TOKENS else "stop", text="t",
        )
        for n in lengths
    ]  # fmt: skip
    scores = [Score.error("broken") if r is None else Score.passed(r) if r > 0.5 else Score.failed(r) for r in rewards]
    return ScoredGroup(group=Group(key=key, prompt_ids=[1, 2], completions=completions), problem=problem, scores=scores)


rewards_and_lengths = st.lists(
    st.lists(st.tuples(st.sampled_from([None, 0.0, 1.0, 0.5]), st.integers(1, MAX_NEW_TOKENS)), min_size=1, max_size=6),
    min_size=1,
    max_size=5,
)


@given(rewards_and_lengths, st.sampled_from(["r1", "v3_2", "dapo", "dr_grpo", "gspo"]), st.sampled_from([None, "mask"]))
def test_counters_account_for_every_completion(groups, preset, overlong):
    scored = [scored_group(*map(list, zip(*group, strict=True)), key=str(i)) for i, group in enumerate(groups)]
    objective = ObjectiveConfig(preset=preset, overlong=overlong).resolve()
    sequences, counters = training_sequences(scored, objective, MAX_NEW_TOKENS)
    counted = {name: counters[f"experience/{name}"] for name in ("sampled", "trained", "unscorable", "dropped")}
    assert counted["sampled"] == sum(map(len, groups))
    assert counted["sampled"] == counted["trained"] + counted["unscorable"] + counted["dropped"]
    assert counted["trained"] == len(sequences)
    assert counted["unscorable"] == sum(reward is None for group in groups for reward, _ in group)
    assert counted["dropped"] >= 0
    assert 0 <= counters["experience/no_signal"] <= 1
    assert all(math.isfinite(sequence.advantage) for sequence in sequences)


def test_r1_advantages_of_one_group():
    sequences, counters = training_sequences(
        [scored_group([1.0, 0.0, None, 0.0, 1.0])], ObjectiveConfig().resolve(), MAX_NEW_TOKENS
    )
    assert [s.advantage for s in sequences] == pytest.approx([1, -1, -1, 1])
    assert counters["experience/unscorable"] == 1
    assert counters["experience/no_signal"] == 0
    assert all(s.prompt_ids.tolist() == [1, 2] for s in sequences)
    assert all((s.sampling_logprobs == -0.5).all() for s in sequences)


def test_dynamic_sampling_drops_groups_without_signal():
    groups = [scored_group([1.0, 1.0]), scored_group([1.0, 0.0], key="1")]
    sequences, counters = training_sequences(groups, ObjectiveConfig(preset="dapo").resolve(), MAX_NEW_TOKENS)
    assert len(sequences) == counters["experience/dropped"] == 2
    assert counters["experience/no_signal"] == 0.5


def test_metrics_leave_unscorable_completions_out():
    groups = [scored_group([1.0, None], [2, 4]), scored_group([0.0, 0.0], [8, 6], domain="logic", key="1")]
    metrics = rollout_metrics(groups)
    assert metrics["reward/mean"] == pytest.approx(1 / 3)
    assert metrics["reward/pass_rate"] == pytest.approx(1 / 3)
    assert metrics["domain/chain_sum"] == 1.0
    assert metrics["domain/logic"] == 0.0
    assert metrics["rollout/length_mean"] == 5.0
    assert metrics["rollout/truncated"] == 0.25


def with_support(scored: ScoredGroup, *sizes: list[int]) -> ScoredGroup:
    """The same group, each completion drawn from sets of the given sizes."""
    completions = [
        replace(c, support=Support(ids=np.zeros(sum(n), np.int32), sizes=np.array(n, np.int32)))
        for c, n in zip(scored.group.completions, sizes, strict=True)
    ]
    return replace(scored, group=replace(scored.group, completions=completions))


def test_supports_reach_training_and_are_counted():
    plain = scored_group([1.0, 0.0], [2, 3])
    drawn = with_support(plain, [1, 4], [1, 1, 8])
    sequences, _ = training_sequences([drawn], ObjectiveConfig().resolve(), MAX_NEW_TOKENS)
    assert [s.support.sizes.tolist() for s in sequences if s.support] == [[1, 4], [1, 1, 8]]
    metrics = rollout_metrics([drawn])
    assert metrics["rollout/support_mean"] == 3.0
    assert metrics["rollout/support_forced"] == pytest.approx(0.6)
    assert not any("support" in name for name in rollout_metrics([plain]))


def test_metrics_of_nothing_scorable_are_no_numbers():
    assert math.isnan(rollout_metrics([scored_group([None, None])])["reward/mean"])


@pytest.mark.parametrize(("groups", "count", "rows"), [(10, 3, 3), (2, 8, 2), (5, 0, 0), (7, 7, 7)])
def test_sample_rows(groups, count, rows):
    scored = [scored_group([1.0, 0.0], key=str(i)) for i in range(groups)]
    chosen = sample_rows(scored, step=4, count=count)
    assert len(chosen) == rows
    assert len({row["problem_id"] for row in chosen}) == rows
    assert all(row["step"] == 4 and row["verdict"] == "pass" and row["question"] == "1+1?" for row in chosen)


def test_counts_of_a_stage_are_those_of_its_completions():
    batches = [
        [scored_group([1.0, 0.0, None], lengths=[3, 4, 5])],
        [scored_group([1.0, 1.0], lengths=[2, 6]), scored_group([0.0, 1.0], lengths=[1, 1])],
    ]
    rows = []
    for groups in batches:
        _, counters = training_sequences(groups, ObjectiveConfig().resolve(), MAX_NEW_TOKENS)
        rows += [rollout_metrics(groups) | counters | {"optimizer/lr": 0.1}, {"optimizer/lr": 0.1}]
    rows.append(rollout_metrics(batches[0]))  # a batch without a signal takes no step
    done = counts(rows)
    assert (done["samples"], done["tokens"], done["steps"]) == (7, 22, 4)
    assert done["samples_unscorable"] == 1 and all(isinstance(count, int) for count in done.values())
