"""Learned rewards in a GRPO stage: their models come from its inputs, and the watch samples and scores for itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.problem_pool import ProblemPool
from data.problems import Problem
from rewards.combine import check_rewards
from rewards.config import RewardSpec
from rewards.pool import RewardPool
from rewards.reward import Verdict
from rl.config import GRPOConfig, RewardWatchConfig
from rl.experience import sample_and_score
from rl.reward_watch import Check, Comparison, RewardWatch
from rollouts.pool import GeneratorPool
from training.stage import StageContext, StageError

GENERAL = "general"
_ACCURACY = RewardSpec(use="rewards.accuracy:Accuracy", except_domains=[GENERAL])


def with_models(specs: Sequence[RewardSpec], inputs: Mapping[str, Path]) -> list[RewardSpec]:
    """The rewards of a recipe; those that need a model get that of the stage's input, unless they name one."""
    filled = []
    for spec, (reward, _) in zip(specs, check_rewards(specs), strict=True):
        role: Any = getattr(reward, "input_role", None)
        if role in inputs and not spec.options.get("model"):
            spec = spec.model_copy(update={"options": {**spec.options, "model": str(inputs[role])}})
        filled.append(spec)
    return filled


class Watcher:
    """Held-out problems, the judges of the answers, and the first check. Judges run in a reward worker of their own."""

    def __init__(
        self,
        config: RewardWatchConfig,
        specs: Sequence[RewardSpec],
        stage: GRPOConfig,
        context: StageContext,
        served: Mapping[str, Any],
    ):
        """`served`: judges that rewards ask, by role (see `rollouts.judge`)."""
        self.config, self.stage, self.seed = config, stage, context.seed
        self.watch = RewardWatch(config.errors, config.length_factor)
        pool = ProblemPool(stage.problems.model_copy(update={"safety_share": 0.0}), "held_out", context.seed)
        problems = pool.draw_distinct(config.problems, 0.0) + pool.draw_distinct(config.problems, 1.0)
        self.problems = [problem for problem in problems if problem.checker != "code"]  # programs take minutes
        self.second, judges = self._judges(specs, context)
        self.rewards = RewardPool(judges, stage.reward_workers, served)

    def _judges(self, specs: Sequence[RewardSpec], context: StageContext) -> tuple[str | None, list[RewardSpec]]:
        """Name of the second judge, and all of them, whatever the step and weight they train at."""
        names = {getattr(reward, "name", spec.use): spec for spec, (reward, _) in _checked(specs)}
        watched = names.get(self.config.reward)
        if watched is None:
            known = ", ".join(sorted(names))
            raise StageError(f"{context.name}: watch.reward is '{self.config.reward}', the stage's rewards are {known}")
        judges = [watched.model_copy(update={"weight": 1.0, "from_share": 0.0, "domains": [GENERAL]}), _ACCURACY]
        if self.config.second is None:
            return None, judges
        (second,) = with_models([self.config.second], context.inputs)
        ((reward, _),) = check_rewards([second])
        judges.append(second.model_copy(update={"domains": [GENERAL]}))
        return getattr(reward, "name", second.use), judges

    def is_due(self, rollout: int) -> bool:
        """From the first rollout batch with general problems on, and before the last."""
        progress = rollout / self.stage.rollouts
        first = next(r for r in range(self.stage.rollouts) if r / self.stage.rollouts >= self.stage.general_from_share)
        return progress >= self.stage.general_from_share and (
            (rollout - first) % self.config.every == 0 or rollout == self.stage.rollouts - 1
        )

    def check(
        self, pool: GeneratorPool, render: Callable[[Sequence[Problem]], Sequence[list[int] | None]]
    ) -> Comparison:
        """One answer to each held-out problem, with the same random numbers every time."""
        groups = sample_and_score(
            self.problems,
            render=render,
            pool=pool,
            rewards=self.rewards,
            params=self.stage.rollout.params(1, self.seed),
            progress=1.0,
            expected_tokens=lambda problem: 0.0,
        )
        check = Check()
        for scored in groups:
            (score,), (completion,) = scored.scores, scored.group.completions
            key = scored.problem.id
            if scored.problem.domain != GENERAL:
                check.note("accuracy", key, None if score.value is None else float(score.verdict is Verdict.PASS))
                continue
            check.note("reward", key, score.parts.get(self.config.reward))
            check.note("second", key, score.parts.get(self.second) if self.second else None)
            check.note("length", key, len(completion.token_ids))
        return self.watch.compare(check)

    def close(self) -> None:
        self.rewards.close()


def _checked(specs: Sequence[RewardSpec]) -> Sequence[tuple[RewardSpec, tuple[Any, Any]]]:
    return list(zip(specs, check_rewards(specs), strict=True))
