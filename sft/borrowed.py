"""Responses to other prompts, judged beside a prompt's own, so that a reward model has to read the prompt.

RRM (Liu et al., arXiv:2409.13156) adds them as rejected responses. Here they come from prompts that look alike, since
those of far ones are told by their form, and the judge says what they are worth. Both are ours.
"""

import random
from collections.abc import Mapping, Sequence

from data.problems import Problem

LOOKED_AT = 64  # other prompts, of which the most similar lend


def borrowed(
    problem: Problem, problems: Sequence[Problem], texts: Mapping[str, Sequence[str]], count: int, seed: int
) -> list[str]:
    """At most `count` responses of `texts` (by problem id), each of another prompt, none that this one has itself."""
    if count == 0:
        return []
    rng = random.Random(f"{seed}-borrowed-{problem.id}")
    looked_at = rng.sample(problems, min(LOOKED_AT, len(problems)))
    looked_at = [other for other in looked_at if other.id != problem.id and texts[other.id]]
    own, found = set(texts[problem.id]), list[str]()
    for other in sorted(looked_at, key=lambda other: -_likeness(problem.question, other.question)):
        if len(found) == count:
            break
        text = rng.choice(list(texts[other.id]))
        if text not in own:
            found.append(text)
            own.add(text)
    return found


def _likeness(one: str, other: str) -> float:
    """Of two texts, in [0, 1]: shared pairs of characters by all of them, in any language."""
    a, b = ({text[i : i + 2] for i in range(len(text) - 1)} for text in (one, other))
    return len(a & b) / max(1, len(a | b))
