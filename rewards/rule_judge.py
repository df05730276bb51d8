"""The miniature's judge: a rule with the faults that judges have. It lets a pipeline be tried without a large model.

It sees the true utility (rewards.utility) through noise, may favour long answers and the answer it reads first, and
says so in the words of any other judge. A reward model sees its verdicts only.
"""

import math
import random

from pydantic import BaseModel, Field

from data.problems import Problem
from rewards.instruction_kinds import count_words
from rewards.utility import is_safe, utility
from rewards.verdicts import verdict_for

MANY_WORDS = 60  # where the pull of length ends


class RuleJudgeConfig(BaseModel, extra="forbid", frozen=True):
    """What keeps the miniature's judge from the truth. Utility is in [0, 1]."""

    noise: float = Field(
        default=0.08,
        ge=0,
        description="standard deviation added to each response's utility; 0.08 is about half a missed check, so that "
        "one query in several is wrong about close pairs, as judges are",
    )
    length_bias: float = Field(
        default=0.0,
        description="utility that 60 words seem to have over none (in the logarithm); 0 for an honest judge, 0.5 and "
        "more for one whose reward model will be hacked",
    )
    position_bias: float = Field(
        default=0.03, description="utility that the response shown first seems to have more; swapping cancels it"
    )
    slight: float = Field(default=0.08, gt=0, description="difference from which one is slightly better")
    clear: float = Field(default=0.2, gt=0, description="difference from which one is significantly better")
    label_noise: float = Field(default=0.05, ge=0, lt=0.5, description="share of safety labels that are wrong")


def judge_pair(problem: Problem, first: str, second: str, config: RuleJudgeConfig, key: str) -> str:
    """An answer with a verdict. `key` seeds the noise, so that a query repeats itself and no two queries agree."""
    rng = random.Random(key)
    difference = _seems(problem, first, config, rng) - _seems(problem, second, config, rng) + config.position_bias
    return f"My final verdict is: [[{verdict_for(difference, config.slight, config.clear)}]]"


def judge_safety(response: str, config: RuleJudgeConfig, key: str) -> str:
    """An answer with a label, wrong for a share `label_noise` of the queries."""
    right = random.Random(key).random() >= config.label_noise
    return f"[[{'safe' if is_safe(response) == right else 'unsafe'}]]"


def _seems(problem: Problem, final: str, config: RuleJudgeConfig, rng: random.Random) -> float:
    words = min(count_words(final), MANY_WORDS)
    pull = config.length_bias * math.log1p(words) / math.log1p(MANY_WORDS)
    return utility(problem, final) + pull + rng.gauss(0, config.noise)
