"""The watch for reward hacking in a GRPO stage: it samples and scores for itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.problem_pool import ProblemPool
from data.problems import Problem
from data.sources import read_problems
from rewards.combine import check_rewards
from rewards.config import RewardSpec
from rewards.pool import RewardPool
from rewards.reward import Score, Verdict
from rl.config import GRPOConfig, RewardWatchConfig
from rl.experience import ScoredGroup, requests_of
from rl.learned_rewards import with_models
from rl.reward_watch import Check, Comparison, RewardWatch
from rollouts.pool import GeneratorPool
from training.stage import StageContext, StageError

GENERAL = "general"
_ACCURACY = RewardSpec(use="rewards.accuracy:Accuracy")


class Watcher:
    """Held-out problems, the judges of the answers, and what they said first. Each judge has a reward worker to itself:
    one that fails takes no other along, and the second may be of the same kind as the watched one."""

    def __init__(
        self,
        config: RewardWatchConfig,
        specs: Sequence[RewardSpec],
        stage: GRPOConfig,
        context: StageContext,
        served: Mapping[str, Any],
    ):
        """`served`: what the stage has started for its rewards to ask, by role."""
        self.config, self.stage, self.seed = config, stage, context.seed
        self.first = next(r for r in range(stage.rollouts) if r / stage.rollouts >= stage.general_from_share)
        due = sum(self.is_due(rollout) for rollout in range(stage.rollouts + 1))
        self.watch = RewardWatch(due - 1, config.risk, config.length_factor)
        self.problems = _held_out(config, stage, context.seed)
        workers = stage.reward_workers.model_copy(update={"workers": 1})
        self.judges = {
            judge: RewardPool([spec], workers, served, role="")
            for judge, spec in _judges(config, specs, context).items()
        }

    def is_due(self, rollout: int) -> bool:
        """Before which rollout batches to look: from the first one with general problems on. And after the last."""
        since = rollout - self.first
        return since >= 0 and (since % self.config.every == 0 or rollout == self.stage.rollouts)

    def check(
        self, pool: GeneratorPool, render: Callable[[Sequence[Problem]], Sequence[list[int] | None]]
    ) -> Comparison:
        """One answer to each held-out problem, with the same random numbers every time."""
        problems = {f"{place}:{problem.id}": problem for place, problem in enumerate(self.problems)}
        requests = requests_of(problems, render(self.problems))
        accuracy, sampled = self.judges["accuracy"], {}
        for group in pool.stream(requests, self.stage.rollout.params(1, self.seed)):
            sampled[group.key] = group
            accuracy.submit(group.key, problems[group.key], [said.text for said in group.completions])
        scores = accuracy.collect()
        groups = [ScoredGroup(group=sampled[r.key], problem=problems[r.key], scores=scores[r.key]) for r in requests]
        check = Check()
        general = {scored.group.key: scored for scored in groups if scored.problem.domain == GENERAL}
        for scored in groups:
            (score,), (completion,) = scored.scores, scored.group.completions
            if scored.problem.domain == GENERAL:
                check.note("length", scored.problem.id, len(completion.token_ids))
            else:
                right = None if score.value is None else float(score.verdict is Verdict.PASS)
                check.note("accuracy", scored.problem.id, right)
        for judge in self.judges.keys() - {"accuracy"}:
            for key, (score,) in self._scores(judge, general).items():
                check.note(judge, general[key].problem.id, score.value)
        return self.watch.compare(check)

    def _scores(self, judge: str, groups: Mapping[str, ScoredGroup]) -> dict[str, list[Score]]:
        for key, scored in groups.items():
            self.judges[judge].submit(key, scored.problem, [c.text for c in scored.group.completions])
        return self.judges[judge].collect()

    def close(self) -> None:
        for pool in self.judges.values():
            pool.close()


def _held_out(config: RewardWatchConfig, stage: GRPOConfig, seed: int) -> list[Problem]:
    """So many of each kind, reasoning and general; fewer where files have no more."""
    if not config.sources:
        pool = ProblemPool(stage.problems.model_copy(update={"safety_share": 0.0}), "held_out", seed)
        found = pool.draw_distinct(config.problems, 0.0) + pool.draw_distinct(config.problems, 1.0)
    else:
        listed = {problem.id: problem for source in config.sources for problem in read_problems(source)}
        kinds = [[p for p in listed.values() if (p.domain == GENERAL) == is_general] for is_general in (False, True)]
        found = [problem for kind in kinds for problem in kind[: config.problems]]
    return [problem for problem in found if problem.checker != "code"]  # programs take minutes


def _judges(config: RewardWatchConfig, specs: Sequence[RewardSpec], context: StageContext) -> dict[str, RewardSpec]:
    """By their names in rl.reward_watch, whatever the steps, domains and weights they train at."""
    names = {getattr(reward, "name", s.use): s for s, (reward, _) in zip(specs, check_rewards(specs), strict=True)}
    if config.reward not in names:
        known = ", ".join(sorted(names))
        raise StageError(f"{context.name}: watch.reward is '{config.reward}', the stage's rewards are {known}")
    chosen = {"accuracy": _ACCURACY, "reward": names[config.reward]}
    if config.second is not None:
        (chosen["second"],) = with_models([config.second], context.inputs)
    alone = {"weight": 1.0, "from_share": 0.0, "domains": None, "except_domains": []}
    return {judge: spec.model_copy(update=alone) for judge, spec in chosen.items()}
