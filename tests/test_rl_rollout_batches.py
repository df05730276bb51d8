"""Rollout batches ahead of the trainer: what is sampled, in which order, and by which weights."""

from collections import Counter
from zlib import crc32

import numpy as np
import pytest

from data.problem_pool import ProblemPool, ProblemsConfig
from rewards.reward import Score
from rl.config import GRPOConfig
from rl.objective import ObjectiveConfig
from rl.rollout_batches import RolloutBatches
from rollouts.config import RolloutConfig
from rollouts.transformers_generator import TransformersGenerator

CONFIG = GRPOConfig(
    problems=ProblemsConfig(families=("chain_sum",), levels=(1,)),
    steps=12,
    questions_per_step=3,
    mini_batches=2,
    group_size=3,
    rollout=RolloutConfig(template="plain", max_new_tokens=60, stop=("e", "a")),  # so lengths differ
)
BATCH = CONFIG.questions_per_step * CONFIG.mini_batches


class Rewards:
    """Those of a stage, in this process: a completion is worth its length, and every fifth group is all alike."""

    def __init__(self):
        self.done, self.counts = {}, {}

    def submit(self, key, problem, completions, progress=1.0):
        alike = int(problem.id.split("-")[-2]) % 5 == 0
        self.done[key] = [Score.passed(1.0 if alike else float(len(text))) for text in completions]
        self.expect(["length"])
        self.counts["length"]["pass"] += len(completions)

    def collect(self):
        done, self.done = self.done, {}
        return done

    def take_counts(self):
        counts, self.counts = self.counts, {name: Counter() for name in self.counts}
        return counts

    @property
    def counted(self):
        return list(self.counts)

    def expect(self, names):
        for name in names:
            self.counts.setdefault(name, Counter())


@pytest.fixture(scope="module")
def generator(tiny_checkpoint):
    return TransformersGenerator(str(tiny_checkpoint), max_slots=8, device="cpu")


def batches_of(generator, **changes) -> RolloutBatches:
    config = CONFIG.model_copy(update=changes)
    return RolloutBatches(
        config,
        pool=generator,
        rewards=Rewards(),
        problems=ProblemPool(config.problems, "train", 3, ()),
        render=lambda problems: [generator.tokenizer.encode(problem.question) for problem in problems],
        seed=lambda purpose, step: crc32(f"{purpose}/{step}".encode()),
    )


def taken(batches, generator, numbers=range(CONFIG.rollouts)):
    """The batches, each with the version of the weights that are then trained."""
    found = []
    for number in numbers:
        batches.settle()
        generator.policy_version = number * CONFIG.mini_batches
        found.append(batches.take(number))
    batches.settle()
    return found


def completions(batch):
    return [said for scored in batch.groups for said in scored.group.completions]


def content(batches):
    """All that is trained on."""
    return [
        [
            (scored.group.key, scored.scores, c.token_ids.tolist(), c.sampling_logprobs.tolist(), [*c.policy_versions])
            for scored in batch.groups
            for c in scored.group.completions
        ]
        for batch in batches
    ]


@pytest.mark.parametrize("staleness", [2, 4])
def test_running_ahead_changes_neither_what_is_asked_nor_what_is_kept(generator, staleness):
    """With weights that stand still the completions are those of a generator that is asked for one batch at a time: all
    of them, short and long, in the order of the problems."""
    ahead = batches_of(generator, max_staleness=staleness)
    found = taken(ahead, generator)
    in_turn = taken(batches_of(generator), generator)
    for batch, other in zip(found, in_turn, strict=True):
        assert [scored.problem.id for scored in batch.groups] == [scored.problem.id for scored in other.groups]
        for scored in batch.groups:
            assert all(said.finish_reason != "interrupted" for said in scored.group.completions)
            assert [score.value for score in scored.scores]
    problems = ahead.problems.draw(0, CONFIG.rollouts * BATCH, 0.0)
    assert [s.problem.id for batch in found for s in batch.groups] == [problem.id for problem in problems]
    alone = taken(batches_of(generator, max_staleness=1), generator)
    assert [[c.token_ids.tolist() for c in completions(b)] for b in found] == [
        [c.token_ids.tolist() for c in completions(b)] for b in alone
    ]
    assert [batch.judged["length"]["pass"] for batch in in_turn] == [BATCH * CONFIG.group_size] * CONFIG.rollouts
    assert sum(batch.judged["length"]["pass"] for batch in found) == BATCH * CONFIG.group_size * CONFIG.rollouts


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_no_token_is_older_than_the_recipe_allows(generator, staleness):
    found = taken(batches_of(generator, max_staleness=staleness), generator)
    ages = []
    for number, batch in enumerate(found):
        for said in completions(batch):
            versions = said.policy_versions // CONFIG.mini_batches
            assert (np.diff(versions) >= 0).all()
            ages += (number - versions).tolist()
    assert min(ages) >= 0 and min(staleness, 1) <= max(ages) <= staleness
    interrupted = [said for batch in found for said in completions(batch) if len(set(said.policy_versions)) > 1]
    assert bool(interrupted) == (staleness == 4)  # with the lengths of these completions; never at 0 and 1
    assert found[-1].in_flight == 0 and any(batch.in_flight for batch in found) == (staleness > 1)


@pytest.mark.parametrize("cut", [1, 4])
def test_what_was_under_way_goes_on_from_a_checkpoint(generator, tmp_path, cut):
    changes = {"max_staleness": 4, "objective": ObjectiveConfig(preset="v3_2", sequence_mask_delta=0.5)}
    unbroken = taken(batches_of(generator, **changes), generator)
    first = batches_of(generator, **changes)
    found = taken(first, generator, range(cut))
    first.save(tmp_path)
    again = batches_of(generator, **changes)
    again.load(tmp_path)
    found += taken(again, generator, range(cut, CONFIG.rollouts))
    assert content(found) == content(unbroken)
    # What was judged before is not judged again, and yet counted under the same names.
    assert [batch.judged for batch in found] == [batch.judged for batch in unbroken]


def test_groups_without_signal_are_made_up_for_before_a_batch_is_taken(generator):
    dapo = ObjectiveConfig(preset="dapo")
    for staleness in (0, 2):
        found = taken(batches_of(generator, objective=dapo, max_staleness=staleness), generator)
        for batch in found:
            assert sum(scored.has_signal for scored in batch.groups) == BATCH
            assert len({scored.group.key for scored in batch.groups}) == len(batch.groups)
        assert sum(len(batch.groups) for batch in found) > BATCH * CONFIG.rollouts


def test_completions_are_not_begun_under_another_limit_than_they_end(generator):
    batches = batches_of(generator, max_staleness=4, max_new_tokens_from={6: 5})
    found = taken(batches, generator)
    assert [batch.longest for batch in found] == [60, 60, 60, 5, 5, 5]
    assert all(len(said.token_ids) <= batch.longest for batch in found for said in completions(batch))
    assert any(len(said.token_ids) > 5 for said in completions(found[2]))


def test_a_fault_while_running_ahead_is_raised_where_the_batch_is_waited_for(generator):
    batches = batches_of(generator, max_staleness=1)
    batches.take(0)
    batches.settle()

    def fails(*args):
        raise RuntimeError("no more rewards")

    batches.rewards.submit = fails
    batches.take(1)
    with pytest.raises(RuntimeError, match="no more rewards"):
        batches.take(2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sample_in_trainer": True}, "sample_in_trainer: false"),
        ({"generator": {"engine": "vllm", "sleep": True}}, "generator.sleep: false"),
        ({"generator": {"work_stealing": True}}, "work_stealing: false"),
    ],
)
def test_a_recipe_that_cannot_run_ahead_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        GRPOConfig.model_validate({"max_staleness": 2, **changes})
