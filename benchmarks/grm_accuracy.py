"""How often a generative reward model names the best response: greedy, one sample, and k votes summed.

    python benchmarks/grm_accuracy.py CHECKPOINT [CHECKPOINT ...] --items 200 --votes 8 --seeds 0 1 2

Held-out procedural items of the tiny chain, whose best response is known by rule. Each seed draws its own items, orders
and samples. Ties are broken at random; an item of which no judgement can be read is named at random as well, so that a
judge that says nothing has 1/n. With --meta, a reward model trained on `grm_meta_data`, also the k/2 votes it trusts
most. Prints one JSON object per checkpoint and seed, and the mean of the seeds.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cluster.actors import kill, spawn, start_ray, stop_ray, wait
from data.config import JudgingConfig
from data.judging_pool import JudgingPool
from data.preferences import RankedResponses
from rewards.grm import Count, Vote, ballot, cast_votes, count_votes
from rewards.judges import RemoteJudge
from rollouts.config import GeneratorConfig, JudgeServiceConfig, RolloutConfig
from rollouts.judge import start_judges, stop_judges


def measure(checkpoint: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """One row per seed."""
    rows: list[dict[str, float]] = [{"seed": seed} for seed in arguments.seeds]
    for temperature, votes in ((0.0, 1), (arguments.temperature, arguments.votes)):
        service = JudgeServiceConfig(
            generator=GeneratorConfig(replicas=arguments.replicas, max_slots=64),
            rollout=RolloutConfig(max_new_tokens=arguments.max_new_tokens, temperature=temperature),
        )
        judges = start_judges({"grm": checkpoint}, service)
        try:
            judge = RemoteJudge(judges["grm"], deadline_s=3600)
            for row, seed in zip(rows, arguments.seeds, strict=True):
                items = _items(arguments, seed)
                cast = cast_votes(items, judge, votes, arguments.style, seed)
                row |= _figures(items, cast, seed, temperature > 0)
                if arguments.meta and temperature > 0:
                    row[f"meta@{votes}"] = _with_meta(items, cast, arguments, seed)
        finally:
            stop_judges(judges)
    return rows


def _items(arguments: argparse.Namespace, seed: int) -> list[RankedResponses]:
    config = JudgingConfig(responses=tuple(arguments.responses), style=arguments.style)
    pool = JudgingPool(config, "held_out", seed, arguments.languages)
    return [pool.item(index) for index in range(arguments.items)]


def _figures(
    items: Sequence[RankedResponses], votes: Sequence[Sequence[Vote]], seed: int, sampled: bool
) -> dict[str, float]:
    if not sampled:
        return {"greedy": _accuracy(items, _counts(items, votes, seed)), "greedy_unreadable": _unreadable(votes)}
    counts = _counts(items, votes, seed)
    singles = [
        _accuracy(items, _counts(items, [[ballots[vote]] for ballots in votes], seed)) for vote in range(len(votes[0]))
    ]
    k = len(votes[0])
    agreements = [count.agreement for count in counts if count.agreement is not None]
    return {
        "sample@1": sum(singles) / len(singles),
        f"vote@{k}": _accuracy(items, counts),
        f"vote@{k}_tied": sum(count.tied for count in counts) / len(counts),
        "agreement": sum(agreements) / max(1, len(agreements)),
        "unreadable": _unreadable(votes),
    }


def _with_meta(
    items: Sequence[RankedResponses], votes: Sequence[Sequence[Vote]], arguments: argparse.Namespace, seed: int
) -> float:
    """Accuracy of the votes that the meta RM trusts most."""
    scorer = spawn("training.reward_scorer:RewardScorer", str(arguments.meta.resolve()))
    conversations = [
        ([dict(turn) for turn in ballot(item, vote.order, arguments.style)], vote.text)
        for item, ballots in zip(items, votes, strict=True)
        for vote in ballots
    ]
    found = iter(wait(scorer.score.remote(conversations), phase="meta RM", deadline_s=3600))
    kill(scorer)
    trust = [[next(found) or 0.0 for _ in ballots] for ballots in votes]
    counts = [count_votes(b, seed, item.id, trust=t) for item, b, t in zip(items, votes, trust, strict=True)]
    return _accuracy(items, counts)


def _counts(items: Sequence[RankedResponses], votes: Sequence[Sequence[Vote]], seed: int) -> list[Count]:
    return [count_votes(ballots, seed, item.id) for item, ballots in zip(items, votes, strict=True)]


def _accuracy(items: Sequence[RankedResponses], counts: Sequence[Count]) -> float:
    right = 0
    for item, count in zip(items, counts, strict=True):
        guess = random.Random(f"guess {item.id}").randrange(len(item.responses))
        right += (guess if count.best is None else count.best) == item.best
    return right / len(items)


def _unreadable(votes: Sequence[Sequence[Vote]]) -> float:
    faults = Counter(bool(vote.fault) for ballots in votes for vote in ballots)
    return faults[True] / faults.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--responses", type=int, nargs="+", default=[2])
    parser.add_argument("--votes", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.5, help="of votes; DeepSeek-GRM's 0.5")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--style", choices=["full", "terse"], default="terse")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--meta", type=Path, help="folder of a meta RM: stage reward_model on grm_meta_data")
    parser.add_argument("--replicas", type=int, default=2)
    arguments = parser.parse_args()
    start_ray()
    for checkpoint in arguments.checkpoints:
        rows = measure(checkpoint.resolve(), arguments)
        for row in rows:
            print(json.dumps({"checkpoint": checkpoint.name} | row))
        names = [name for name in rows[0] if name != "seed"]
        mean = {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in names}
        print(json.dumps({"checkpoint": checkpoint.name, "seeds": len(rows)} | mean), flush=True)
    stop_ray()


if __name__ == "__main__":
    main()
