"""The reward of a stage: a weighted sum of rewards, added directly as in DeepSeek-R1, Eq. 8.

    value = sum over applicable rewards of weight x part

An error in any part makes the whole an error: a sum with a missing term would be a wrong number.
"""

import difflib
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from data.problems import Problem
from rewards.calling import check_call, construct, judge, options_model
from rewards.config import RewardSpec
from rewards.reward import Reward, Score, Verdict

KNOWN_REWARDS = (
    "rewards.accuracy:Accuracy",
    "rewards.code:Code",
    "rewards.format:Format",
    "rewards.generative:Generative",
    "rewards.grm_rule:GRMRule",
    "rewards.language:LanguageConsistency",
    "rewards.length:Overlong",
    "rewards.length:CosineLength",
    "rewards.length:TokenBudget",
    "rewards.preference:HelpfulReward",
    "rewards.preference:SafetyReward",
    "rewards.reference_judge:ReferenceJudge",
    "rewards.repetition:Repetition",
)
CORRECTNESS = ("accuracy", "code", "reference_judge")  # rewards whose verdict is that of the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One reward and where it counts."""

    reward: Reward
    weight: float = 1.0
    domains: frozenset[str] | None = field(default=None)  # None means all
    except_domains: frozenset[str] = frozenset()
    from_share: float = 0.0  # counts when progress >= from_share

    def applies(self, problem: Problem, progress: float) -> bool:
        included = self.domains is None or problem.domain in self.domains
        return progress >= self.from_share and included and problem.domain not in self.except_domains


class CompositeReward:
    """A weighted sum of rewards. `parts` of its scores holds the unweighted value of each reward that applied.

    The verdict is that of the reward of CORRECTNESS that applied; elsewhere PASS when all parts passed.
    `counts[name][verdict]` counts every judgement since the start, `counts[name]["timeout"]` those that a time limit
    ended and `counts[name]["unreadable"]` those of completions that could not be read, whatever their verdict.
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
            judged = judge(term.reward, [pairs[row][0] for row in rows], [pairs[row][1] for row in rows])
            for row, score in zip(rows, judged, strict=True):
                scores[row][term.reward.name] = score
                counts = self.counts[term.reward.name]
                counts.update({score.verdict.value: 1, "timeout": int(score.timed_out)})
                if score.unreadable:
                    counts["unreadable"] += 1
        weights = {term.reward.name: term.weight for term in self.terms}
        return [_add(problem, by_name, weights) for (problem, _), by_name in zip(pairs, scores, strict=True)]

    def close(self) -> None:
        """Release what the rewards hold, e.g. grader processes."""
        for term in self.terms:
            close = getattr(term.reward, "close", None)
            if close is not None:
                close()


def build_reward(specs: Sequence[RewardSpec], inputs: Mapping[str, Any] | None = None) -> CompositeReward:
    """The reward of a recipe. Raises ValueError naming the recipe key, e.g. `rewards[1].options.layout`.

    inputs: what the stage hands to its rewards by role, e.g. the handle of a judge; for those that have `connect`.
    """
    composite = CompositeReward(
        [
            Term(
                reward=_construct(target, options, f"rewards[{position}]"),
                weight=spec.weight,
                domains=None if spec.domains is None else frozenset(spec.domains),
                except_domains=frozenset(spec.except_domains),
                from_share=spec.from_share,
            )
            for position, (spec, (target, options)) in enumerate(zip(specs, check_rewards(specs), strict=True))
        ]
    )
    for position, term in enumerate(composite.terms):
        _connect(term.reward, inputs or {}, f"rewards[{position}]")
    return composite


def load_reward(use: str, options: Mapping[str, Any] | None = None, inputs: Mapping[str, Any] | None = None) -> Reward:
    """One reward by its import path. Raises ValueError saying what is wrong with the path, an option or an input."""
    target = _import_reward(use, "reward")
    read = _read_options(target, use, options or {}, "options")
    _check_call(target, read, f"reward: {use}")
    reward = _construct(target, read, "reward")
    _connect(reward, inputs or {}, "reward")
    return reward


def check_rewards(specs: Sequence[RewardSpec]) -> list[tuple[Any, BaseModel | None]]:
    """(class or function, options) of each spec, nothing built yet. Raises ValueError as `build_reward` does."""
    if not specs:
        raise ValueError("rewards: list at least one reward, e.g. {use: rewards.accuracy:Accuracy}.")
    checked = []
    for position, spec in enumerate(specs):
        target = _import_reward(spec.use, f"rewards[{position}].use")
        options = _read_options(target, spec.use, spec.options, f"rewards[{position}].options")
        _check_call(target, options, f"rewards[{position}].use: {spec.use}")
        checked.append((target, options))
    return checked


def _construct(target: Any, options: BaseModel | None, key: str) -> Reward:
    try:
        return construct(target, options)
    except Exception as error:
        raise ValueError(f"{key}: {_say(error)}") from error


def _connect(reward: Any, inputs: Mapping[str, Any], key: str) -> None:
    """Hand the stage's inputs to a reward that asks for them."""
    connect = getattr(reward, "connect", None)
    if connect is not None:
        try:
            connect(inputs)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error


def _add(problem: Problem, scores: dict[str, Score], weights: dict[str, float]) -> Score:
    if not scores:
        return Score.error(f"No reward applies to domain {problem.domain!r} of problem {problem.id}.")
    timed_out = any(score.timed_out for score in scores.values())
    errors = {name: score for name, score in scores.items() if score.value is None}
    if errors:
        said = "; ".join(f"{name}: {score.detail}" for name, score in errors.items())
        return Score.error(said, timed_out, retry=all(score.retry for score in errors.values()))
    parts = {name: score.value for name, score in scores.items() if score.value is not None}
    deciding = [scores[name] for name in CORRECTNESS if name in scores] or list(scores.values())
    verdict = Verdict.PASS if all(score.verdict is Verdict.PASS for score in deciding) else Verdict.FAIL
    return Score(
        verdict=verdict,
        value=sum(weights[name] * value for name, value in parts.items()),
        parts=parts,
        detail="; ".join(f"{name}: {score.detail}" for name, score in scores.items() if score.detail),
        timed_out=timed_out,
        unreadable=any(score.unreadable for score in scores.values()),
    )


def _import_reward(path: str, key: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError, ValueError, TypeError) as error:
        hint = nearest(path, KNOWN_REWARDS)
        raise ValueError(f"{key}: no reward class or function at {path!r} ({_say(error)}).{hint}") from error
    except Exception as error:  # the module is the user's, and may do anything
        raise ValueError(f"{key}: {module_name} cannot be imported: {_say(error)}") from error
    if not callable(target):
        raise ValueError(f"{key}: {path!r} is {type(target).__name__}, not a reward class or function.")
    return target


def _read_options(target: Any, use: str, given: Mapping[str, Any], key: str) -> BaseModel | None:
    try:
        model = options_model(target)
    except ValueError as error:
        raise ValueError(f"{key}: {use}: {error}") from error
    if model is None:
        if given:
            raise ValueError(f"{key}: {use} takes no options, got {', '.join(given)}.")
        return None
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        hint = nearest(option, tuple(model.model_fields)) if unknown else f" {first['msg']}."
        raise ValueError(f"{key}.{option}: {'unknown option' if unknown else 'bad value'} of {use}.{hint}") from error


def _check_call(target: Any, options: BaseModel | None, key: str) -> None:
    try:
        check_call(target, options)
    except ValueError as error:
        raise ValueError(f"{key}: {error}.") from None


def _say(error: Exception) -> str:
    """An exception in one line; the type too, where the message is not written for the user."""
    said = " ".join(str(error).split())
    spoken = isinstance(error, ValueError | ImportError | AttributeError | RuntimeError)
    return said if said and spoken else f"{type(error).__name__}: {said}"


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a paragraph about an unknown word: " Did you mean accuracy?", or all that are known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known are {', '.join(known)}."
