"""The reward of a stage: a weighted sum of rewards, added directly as in DeepSeek-R1, Eq. 8.

    value = sum over applicable rewards of weight x part

An error in any part makes the whole an error: a sum with a missing term would be a wrong number.
"""

import difflib
import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from data.problems import Problem
from rewards.config import RewardSpec
from rewards.reward import Reward, Score, Verdict

KNOWN_REWARDS = ("rewards.accuracy:Accuracy", "rewards.format:Format", "rewards.language:LanguageConsistency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One reward and where it counts."""

    reward: Reward
    weight: float = 1.0
    domains: frozenset[str] | None = field(default=None)  # None means all
    from_share: float = 0.0  # counts when progress >= from_share

    def applies(self, problem: Problem, progress: float) -> bool:
        return progress >= self.from_share and (self.domains is None or problem.domain in self.domains)


class CompositeReward:
    """A weighted sum of rewards. `parts` of its scores holds the unweighted value of each reward that applied.

    The verdict is that of the reward named accuracy where it applied; elsewhere PASS when all parts passed.
    `counts[name][verdict]` counts every judgement since the start.
    """

    name = "composite"

    def __init__(self, terms: Sequence[Term]):
        names = [term.reward.name for term in terms]
        if len(set(names)) < len(names):
            raise ValueError(f"rewards: each reward may be used once, got {', '.join(names)}.")
        self.terms = tuple(terms)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in names}

    def __call__(self, problem: Problem, completion: str, progress: float = 1.0) -> Score:
        return self.score_batch([problem], [completion], progress)[0]

    def score_batch(
        self, problems: Sequence[Problem], completions: Sequence[str], progress: float = 1.0
    ) -> list[Score]:
        """One Score per pair. `progress` is the share of the stage's steps already taken, in [0, 1]."""
        pairs = list(zip(problems, completions, strict=True))
        scores: list[dict[str, Score]] = [{} for _ in pairs]  # per pair: reward name -> its score
        for term in self.terms:
            rows = [row for row, (problem, _) in enumerate(pairs) if term.applies(problem, progress)]
            judged = _judge(term.reward, [pairs[row] for row in rows])
            for row, score in zip(rows, judged, strict=True):
                scores[row][term.reward.name] = score
                self.counts[term.reward.name][score.verdict.value] += 1
        weights = {term.reward.name: term.weight for term in self.terms}
        return [_add(problem, by_name, weights) for (problem, _), by_name in zip(pairs, scores, strict=True)]

    def close(self) -> None:
        """Release what the rewards hold, e.g. grader processes."""
        for term in self.terms:
            close = getattr(term.reward, "close", None)
            if close is not None:
                close()


def build_reward(specs: Sequence[RewardSpec]) -> CompositeReward:
    """The reward of a recipe. Raises ValueError naming the recipe key, e.g. `rewards[1].options.layout`."""
    return CompositeReward(
        [
            Term(
                reward=reward_class(*arguments),
                weight=spec.weight,
                domains=None if spec.domains is None else frozenset(spec.domains),
                from_share=spec.from_share,
            )
            for spec, (reward_class, arguments) in zip(specs, check_rewards(specs), strict=True)
        ]
    )


def check_rewards(specs: Sequence[RewardSpec]) -> list[tuple[Any, tuple]]:
    """(class, constructor arguments) of each spec, nothing built yet. Raises ValueError as `build_reward` does."""
    if not specs:
        raise ValueError("rewards: list at least one reward, e.g. {use: rewards.accuracy:Accuracy}.")
    checked = []
    for position, spec in enumerate(specs):
        reward_class = _import_reward(spec.use, f"rewards[{position}].use")
        checked.append((reward_class, _arguments(reward_class, spec, f"rewards[{position}].options")))
    return checked


def _judge(reward: Reward, pairs: list[tuple[Problem, str]]) -> list[Score]:
    """Scores of one reward. An exception is the failure of a grader, so it becomes an error score."""
    batch = getattr(reward, "score_batch", None)
    if batch is None:
        return [_judge_one(reward, problem, completion) for problem, completion in pairs]
    try:
        scores = list(batch([problem for problem, _ in pairs], [completion for _, completion in pairs]))
    except Exception as error:
        return [_error_of(error)] * len(pairs)
    if len(scores) != len(pairs):
        return [Score.error(f"It returned {len(scores)} scores for {len(pairs)} completions.")] * len(pairs)
    return scores


def _judge_one(reward: Reward, problem: Problem, completion: str) -> Score:
    try:
        return reward(problem, completion)
    except Exception as error:
        return _error_of(error)


def _error_of(error: Exception) -> Score:
    return Score.error(f"{type(error).__name__}: {error}")


def _add(problem: Problem, scores: dict[str, Score], weights: dict[str, float]) -> Score:
    if not scores:
        return Score.error(f"No reward applies to domain {problem.domain!r} of problem {problem.id}.")
    errors = [f"{name}: {score.detail}" for name, score in scores.items() if score.value is None]
    if errors:
        return Score.error("; ".join(errors))
    parts = {name: score.value for name, score in scores.items() if score.value is not None}
    if "accuracy" in scores:
        verdict = scores["accuracy"].verdict
    else:
        verdict = Verdict.PASS if all(score.verdict is Verdict.PASS for score in scores.values()) else Verdict.FAIL
    return Score(
        verdict=verdict,
        value=sum(weights[name] * value for name, value in parts.items()),
        parts=parts,
        detail="; ".join(f"{name}: {score.detail}" for name, score in scores.items() if score.detail),
    )


def _import_reward(path: str, key: str) -> Any:
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        hint = _nearest(path, KNOWN_REWARDS)
        raise ValueError(f"{key}: no reward class at {path!r} ({error}).{hint}") from error


def _arguments(reward_class: Any, spec: RewardSpec, key: str) -> tuple:
    options_class = getattr(reward_class, "Options", None)
    if options_class is None:
        if spec.options:
            raise ValueError(f"{key}: {spec.use} takes no options, got {', '.join(spec.options)}.")
        return ()
    try:
        return (options_class(**spec.options),)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        hint = _nearest(option, tuple(options_class.model_fields)) if unknown else f" {first['msg']}."
        raise ValueError(
            f"{key}.{option}: {'unknown option' if unknown else 'bad value'} of {spec.use}.{hint}"
        ) from error


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known are {', '.join(known)}."
