"""From prompts to requests, and from scored groups to training sequences and metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.problems import Problem
from rewards.reward import Score, Verdict
from rl.advantage import assign_advantages, group_advantages
from rl.batch import TrainingSequence
from rl.objective import Objective
from rollouts.records import Group, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    group: Group
    problem: Problem
    scores: list[Score]  # [G]

    @property
    def mean_length(self) -> float:
        """Of its completions, tokens."""
        return _mean([len(completion.token_ids) for completion in self.group.completions])

    @property
    def has_signal(self) -> bool:
        """Whether the rewards tell its completions apart."""
        return group_advantages([score.value for score in self.scores], divide_by_std=False).has_signal


def requests_of(
    problems: Mapping[str, Problem],
    prompts: Sequence[list[int] | None],
    *,
    expected_tokens: Callable[[Problem], float] = lambda problem: 0.0,
    routing_groups: int = 0,
    seed: int | None = None,
) -> list[Request]:
    """One request per problem (by key), in their order.

    prompts: token ids; None for one that leaves no room to answer, whose problem is then left out.
    expected_tokens: of a problem's completions, as far as is known; long ones are begun first.
    routing_groups: the first so many groups come with their routed experts, to be compared with the trainer's.
    """
    requests: list[Request] = []
    for (key, problem), ids in zip(problems.items(), prompts, strict=True):
        if ids is not None:
            noted = len(requests) < routing_groups
            requests.append(
                Request(
                    key=key,
                    prompt_ids=ids,
                    expected_tokens=expected_tokens(problem),
                    return_routed_experts=noted,
                    seed=seed,
                )
            )
    return requests


def training_sequences(
    groups: Sequence[ScoredGroup], objective: Objective, max_new_tokens: int
) -> tuple[list[TrainingSequence], dict[str, float]]:
    """The completions to train on with their advantages, and where every sampled completion went.

    Counters: experience/sampled = trained + unscorable + dropped; experience/no_signal is a share of groups.
    """
    sequences, sampled, unscorable, without_signal = [], 0, 0, 0
    for place, scored in enumerate(groups):
        completions = scored.group.completions
        result = assign_advantages(
            [score.value for score in scored.scores],
            [len(completion.token_ids) for completion in completions],
            [completion.finish_reason == "length" for completion in completions],
            max_new_tokens,
            objective,
        )
        sampled += len(completions)
        unscorable += sum(score.verdict is Verdict.ERROR for score in scored.scores)
        without_signal += not result.has_signal
        for sample, advantage in enumerate(result.advantages):
            if advantage is not None:
                sequences.append(_sequence(scored.group, place, sample, advantage))
    counters = {
        "experience/sampled": sampled,
        "experience/trained": len(sequences),
        "experience/unscorable": unscorable,
        "experience/dropped": sampled - len(sequences) - unscorable,
        "experience/no_signal": without_signal / len(groups),
    }
    return sequences, counters


def _sequence(group: Group, place: int, sample: int, advantage: float) -> TrainingSequence:
    completion = group.completions[sample]
    return TrainingSequence(
        prompt_ids=np.array(group.prompt_ids, dtype=np.int64),
        completion_ids=completion.token_ids.astype(np.int64),
        advantage=advantage,
        sampling_logprobs=completion.sampling_logprobs,
        routed_experts=completion.routed_experts,
        support=completion.support,
        group=place,
        sample=sample,
    )


def staleness_metrics(groups: Sequence[ScoredGroup], step: int, mini_batches: int) -> dict[str, float]:
    """How old the weights are that sampled a rollout batch, which is trained on after `step` steps: weight syncs since,
    per token; and the share of completions that were interrupted by one."""
    versions = [completion.policy_versions for scored in groups for completion in scored.group.completions]
    syncs = (step - np.concatenate(versions)) / mini_batches
    return {
        "staleness/mean": float(syncs.mean()),
        "staleness/max": float(syncs.max()),
        "rollout/interrupted": _mean([v[0] != v[-1] for v in versions]),
    }


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards by part and domain, pass rate, lengths and truncation of a rollout batch, without the unscorable."""
    scores = [(scored.problem, score) for scored in groups for score in scored.scores if score.value is not None]
    completions = [completion for scored in groups for completion in scored.group.completions]
    metrics = {
        "rollout/length_mean": _mean([len(c.token_ids) for c in completions]),
        "rollout/truncated": _mean([c.finish_reason == "length" for c in completions]),
        "reward/mean": _mean([score.value for _, score in scores if score.value is not None]),
        "reward/pass_rate": _mean([score.verdict is Verdict.PASS for _, score in scores]),
    }
    sizes = [completion.support.sizes for completion in completions if completion.support is not None]
    if sizes:
        sizes = np.concatenate(sizes)
        metrics["rollout/support_mean"] = float(sizes.mean())
        metrics["rollout/support_forced"] = float((sizes == 1).mean())  # no choice, so no gradient
    for name in sorted({part for _, score in scores for part in score.parts}):
        metrics[f"reward/{name}"] = _mean([s.parts[name] for _, s in scores if name in s.parts])
    for domain in sorted({problem.domain for problem, _ in scores}):
        metrics[f"domain/{domain}"] = _mean([s.verdict is Verdict.PASS for p, s in scores if p.domain == domain])
    return metrics


def counts(metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What a whole stage did, from the rows of its metrics.jsonl: a cut-off stage ends with the same rows."""
    batches = [row for row in metrics if "experience/sampled" in row]
    tokens = round(sum(row["experience/sampled"] * row["rollout/length_mean"] for row in batches))
    return {
        "samples": sum(row["experience/sampled"] for row in batches),
        "samples_trained": sum(row["experience/trained"] for row in batches),
        "samples_unscorable": sum(row["experience/unscorable"] for row in batches),
        "tokens": tokens,
        "tokens_trained": tokens,  # those of groups without a signal cost as much
        "steps": sum("optimizer/lr" in row for row in metrics),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def sample_rows(groups: Sequence[ScoredGroup], step: int, count: int) -> list[Mapping[str, Any]]:
    """The first completion of `count` evenly spaced groups, for people to read."""
    chosen = groups[:: max(1, len(groups) // count)][:count] if count else []
    return [
        {
            "step": step,
            "problem_id": scored.problem.id,
            "domain": scored.problem.domain,
            "language": scored.problem.language,
            "question": scored.problem.question,
            "completion": scored.group.completions[0].text,
            "reward": scored.scores[0].value,
            "parts": dict(scored.scores[0].parts),
            "verdict": scored.scores[0].verdict.value,
        }
        for scored in chosen
    ]
