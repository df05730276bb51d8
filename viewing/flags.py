"""What makes a completion, or a group, worth a look: the one definition of the filters of the group browser."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data.chat import parse_completion

UNSCORABLE, HACKED, TRUNCATED, MIXED, NO_SIGNAL = "unscorable", "hacked", "truncated", "language-mixed", "no signal"
FLAGS = {
    UNSCORABLE: "no reward could be given",
    HACKED: "a learned reward of at least 0.8 and verdict fail; any verdict while the stage's watch says that the "
    "learned reward and its other judges have parted",
    TRUNCATED: "ended by the length limit",
    MIXED: "less than 90 % of the words of the reasoning are of the problem's language",
    NO_SIGNAL: "all rewards of the group are equal",
}
HIGH_LEARNED = 0.8  # learned rewards lie in [0, 1], at 0.5 where the model has no preference
CONSISTENT = 0.9  # language reward; a name or a term in another language costs less than a tenth of the words
SPREAD = 1e-9  # as rl.advantage.SPREAD_TOLERANCE, which lies above this package's imports

_LEARNED = {
    "rewards.preference:HelpfulReward": "helpful",
    "rewards.preference:SafetyReward": "safety",
    "rewards.generative:Generative": "generative",
}


def learned_parts(config: Mapping[str, Any]) -> frozenset[str]:
    """Names of those parts of a stage's reward that a model gives, from its config as plan and manifest have it."""
    used = {str(spec.get("use")) for spec in config.get("rewards") or ()}
    return frozenset(name for use, name in _LEARNED.items() if use in used)


def completion_flags(row: Mapping[str, Any], learned: Collection[str], parted: bool) -> list[str]:
    """Flags of one completion. `parted`: what the watch said last before its step."""
    parts = row["parts"]
    flags = []
    if row["verdict"] == "error":
        flags.append(UNSCORABLE)
    if any(parts.get(name, 0) >= HIGH_LEARNED for name in learned) and (parted or row["verdict"] == "fail"):
        flags.append(HACKED)
    if row["finish_reason"] == "length":
        flags.append(TRUNCATED)
    if parts.get("language", 1.0) < CONSISTENT and parse_completion(row["text"]).reasoning:  # none earns 0, too
        flags.append(MIXED)
    return flags


def has_signal(rewards: Sequence[float | None]) -> bool:
    """Whether the rewards of a group tell its completions apart."""
    scorable = [reward for reward in rewards if reward is not None]
    return len(scorable) > 1 and max(scorable) - min(scorable) > SPREAD
