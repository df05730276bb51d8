"""Votes of a generative reward model (GRM), and their count (DeepSeek-GRM, arXiv:2504.02495, sections 3.3 and 4).

One vote is one sampled judgement of all responses in a shuffled order. Scores of k votes are summed, so that their
range grows to 10 k and responses that one judgement calls equal come apart. With a meta RM, which says how far each
judgement can be trusted, only the k/2 most trusted votes are counted.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from data.config import JudgeStyle
from data.judging import judging_messages, rubric_of
from data.preferences import RankedResponses, Turns
from rewards.grm_text import Reason, Unreadable, read_scores
from rewards.judges import Answer, Judge

_NO_ROOM = "no_room"
UNREADABLE = (*get_args(Reason), _NO_ROOM)  # faults of judgements; others are those of a server that gave none


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One judgement of n responses. `scores` is None exactly when it could not be read."""

    order: tuple[int, ...]  # response order[j] was shown at place j
    text: str
    scores: tuple[int, ...] | None  # 1..10, in the responses' own order, whatever the order shown
    fault: str = ""  # why it could not be read: a reason of rewards.grm_text, or no_room


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What the votes say together. `totals`, `best` and `agreement` are None when no vote could be read."""

    totals: tuple[int, ...] | None  # per response, from `counted` to 10 `counted`
    best: int | None  # place of the response with the highest total; ties are broken at random, by seed
    tied: bool  # whether the highest total was shared
    counted: int  # votes in the totals
    votes: int  # votes cast
    agreement: float | None  # share of the counted votes that put `best` strictly on top, in [0, 1]
    faults: Counter[str] = field(default_factory=Counter)  # why votes could not be read

    @property
    def unscorable(self) -> float:
        """Share of votes that could not be read, in [0, 1]."""
        return sum(self.faults.values()) / self.votes


def shuffled_orders(responses: int, votes: int, seed: int, key: str) -> list[tuple[int, ...]]:
    """The order of the responses in each vote, uniform and independent; a function of the arguments alone."""
    orders = (random.Random(f"{seed}/{key}/{vote}") for vote in range(votes))
    return [tuple(rng.sample(range(responses), responses)) for rng in orders]


def read_vote(order: Sequence[int], answer: Answer | None) -> Vote:
    """A judge's answer about responses shown in `order`; None: it had no room for them."""
    if answer is None:
        return Vote(order=tuple(order), text="", scores=None, fault=_NO_ROOM)
    if answer.fault:
        return Vote(order=tuple(order), text="", scores=None, fault=answer.fault)
    shown = read_scores(answer.text, len(order), answer.truncated)
    if isinstance(shown, Unreadable):
        return Vote(order=tuple(order), text=answer.text, scores=None, fault=shown.reason)
    by_response = dict(zip(order, shown, strict=True))
    return Vote(order=tuple(order), text=answer.text, scores=tuple(by_response[i] for i in range(len(order))))


def count_votes(
    votes: Sequence[Vote], seed: int, key: str, trust: Sequence[float] | None = None, keep: int | None = None
) -> Count:
    """Sum the scores of all votes, or of the `keep` that a meta RM trusts most.

    trust: per vote, the meta RM's probability that it is right. Votes that cannot be read are never counted.
    keep: how many to count with `trust`; none: half of those cast, at least one (the paper's k_meta = k/2).
    Ties for the best: the first of the tied ones in an order shuffled by (seed, key), so that no place is favoured.
    Raises ValueError when there are no votes, or not one number of trust for each.
    """
    if not votes:
        raise ValueError(f"count_votes: there are no votes about {key}")
    if trust is not None and len(trust) != len(votes):
        raise ValueError(f"count_votes: {len(trust)} numbers of trust for {len(votes)} votes about {key}")
    readable = [place for place, vote in enumerate(votes) if vote.scores is not None]
    if trust is not None:
        kept = max(1, len(votes) // 2) if keep is None else keep
        readable = sorted(readable, key=lambda place: (-trust[place], place))[:kept]
    faults = Counter(vote.fault for vote in votes if vote.scores is None)
    counted = [scores for place in readable if (scores := votes[place].scores) is not None]
    if not counted:
        return Count(totals=None, best=None, tied=False, counted=0, votes=len(votes), agreement=None, faults=faults)
    totals = tuple(map(sum, zip(*counted, strict=True)))
    tied = [place for place, total in enumerate(totals) if total == max(totals)]
    best = random.Random(f"{seed}/{key}/tie").choice(tied)
    agreeing = sum(all(best == i or scores[best] > other for i, other in enumerate(scores)) for scores in counted)
    return Count(
        totals=totals,
        best=best,
        tied=len(tied) > 1,
        counted=len(counted),
        votes=len(votes),
        agreement=agreeing / len(counted),
        faults=faults,
    )


def scaled(total: int, votes: int) -> float:
    """A total of `votes` scores in 1..10, scaled to [0, 1]: their mean, less 1, by 9."""
    return (total - votes) / (9 * votes)


def ballot(item: RankedResponses, order: Sequence[int], style: JudgeStyle) -> Turns:
    """The prompt of one vote, which shows response order[j] at place j."""
    shown, rubric = [item.responses[i] for i in order], rubric_of(item.metadata)
    return judging_messages(item.messages, shown, style, item.language, rubric)


def cast_votes(
    items: Sequence[RankedResponses], judge: Judge, votes: int, style: JudgeStyle, seed: int
) -> list[list[Vote]]:
    """`votes` judgements of every item, each of them in another shuffled order; all asked of the judge at once.

    A prompt that the judge has no room for is a vote that cannot be read (`no_room`). Raises JudgeFailed.
    """
    orders = [shuffled_orders(len(item.responses), votes, seed, item.id) for item in items]
    prompts = [ballot(item, order, style) for item, shuffled in zip(items, orders, strict=True) for order in shuffled]
    answers = iter(judge.answers(prompts, seed))
    return [[read_vote(order, next(answers)) for order in shuffled] for shuffled in orders]
