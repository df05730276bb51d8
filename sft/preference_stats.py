"""What the data card says of judged pairs: lengths, position bias, agreement, and in miniature the truth."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, TypeVar

from data.preferences import Preference, PreferencePair, SafetyLabel
from rewards.utility import is_safe, utility
from sft.judging import Judged, Question

AnyRecord = TypeVar("AnyRecord", bound=Preference)


def balanced(records: Sequence[AnyRecord], within: float, drop_limit: float = 1.0) -> list[AnyRecord]:
    """Pairs whose chosen and rejected responses have mean lengths (characters) that differ by at most the share
    `within` of their common mean; other records as they are.

    Pairs are dropped from the side that is too heavy, those that differ most first, but none that would tip the
    balance: few have to go. Where all pairs differ alike, none of it helps: no more than the share `drop_limit` of
    them is dropped, and the rest stays unbalanced.
    """
    pairs = [record for record in records if isinstance(record, PreferencePair)]
    surplus = sum(len(pair.chosen) - len(pair.rejected) for pair in pairs)
    both = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    sign = 1 if surplus > 0 else -1
    dropped: set[str] = set()
    for pair in sorted(pairs, key=lambda pair: (-sign * (len(pair.chosen) - len(pair.rejected)), pair.id)):
        heavier = sign * (len(pair.chosen) - len(pair.rejected))
        if sign * surplus <= within * both / 2 or heavier <= 0 or len(dropped) + 1 > drop_limit * len(pairs):
            break
        if heavier <= sign * surplus:
            dropped.add(pair.id)
            surplus, both = surplus - sign * heavier, both - len(pair.chosen) - len(pair.rejected)
    return [record for record in records if record.id not in dropped]


def length_difference(records: Sequence[Preference]) -> float | None:
    """Mean length of chosen responses less that of rejected ones (characters), as a share of their common mean; None
    without pairs."""
    pairs = [record for record in records if isinstance(record, PreferencePair)]
    chosen, rejected = sum(len(pair.chosen) for pair in pairs), sum(len(pair.rejected) for pair in pairs)
    return (chosen - rejected) / ((chosen + rejected) / 2) if pairs else None


def judging_stats(judged: Judged, questions: Sequence[Question]) -> dict[str, Any]:
    """Shares in [0, 1]; None where there is nothing to count.

    first_preferred     of the verdicts that are no tie, those for the response shown first; 0.5 is without bias
    agreement           of two queries about the same question, how often they say better, equal, worse alike
    order_flips         of the pairs judged in both orders, those whose mean verdict turns with the order
    longer_preferred    of the pairs with a mean verdict and unequal lengths, those where the longer one is better
    """
    found = [(q, judged.judgements[q.key]) for q in questions if q.key in judged.judgements]
    pairs = [(q, j) for q, j in found if len(q.responses) == 2]
    first = [
        (value < 0) == swapped for _, j in pairs for value, swapped in zip(j.values, j.swapped, strict=True) if value
    ]
    alike = [_sign(a) == _sign(b) for _, j in pairs for a, b in combinations(j.values, 2)]
    alike += [a == b for q, j in found if len(q.responses) == 1 for a, b in combinations(j.values, 2)]
    longer = [
        (j.mean > 0) == (len(q.responses[0]) > len(q.responses[1]))
        for q, j in pairs
        if j.mean and len(q.responses[0]) != len(q.responses[1])
    ]
    stats = {
        "agreement": _share(alike),
        "failed_queries": judged.failed,
        "unjudged_questions": judged.unjudged,
    }
    if pairs:
        both_orders = [j.by_order for _, j in pairs if len(j.by_order) == 2]
        flips = [_sign(a) * _sign(b) < 0 for a, b in both_orders]
        stats |= {
            "first_preferred": _share(first),
            "order_flips": _share(flips),
            "longer_preferred": _share(longer),
            "mean_gap": sum(abs(j.mean) for _, j in pairs) / len(pairs),
        }
    return stats


def truth_stats(records: Sequence[Preference]) -> dict[str, Any]:
    """Lengths of what was kept; where the prompts are the tiny chain's own, how often the judge was right."""
    pairs = [r for r in records if isinstance(r, PreferencePair)]
    labels = [r for r in records if isinstance(r, SafetyLabel)]
    stats: dict[str, Any] = {}
    if pairs:
        stats["chosen_characters_mean"] = sum(len(pair.chosen) for pair in pairs) / len(pairs)
        stats["rejected_characters_mean"] = sum(len(pair.rejected) for pair in pairs) / len(pairs)
        known = [(p, problem) for p in pairs if (problem := p.problem) and problem.checker == "instruction"]
        right = [utility(problem, p.chosen) > utility(problem, p.rejected) for p, problem in known]
    else:
        stats["safe_share"] = _share([label.safe for label in labels])
        right = [label.safe == is_safe(label.response) for label in labels if label.problem]
    return stats | ({"right_by_true_utility": _share(right)} if right else {})


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _share(found: Sequence[bool]) -> float | None:
    return sum(found) / len(found) if found else None
