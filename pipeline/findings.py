"""The findings of the DeepSeek-R1 paper, checked one by one on the completions of a run.

A finding is a claim about the sign of a difference between two checkpoints on the same held-out problems. It is
judged by the 95 % paired bootstrap interval of that difference (pipeline.statistics) and by nothing else:

    holds            the whole interval lies on the claimed side of zero
    does not hold    the whole interval lies on the other side
    within noise     the interval contains zero
    not measured     a checkpoint is missing, or fewer than MIN_PROBLEMS problems are common to both

A claim that something does not fall has its line at -MAY_FALL instead of zero. A finding of several claims holds when
all of them hold.

A target ("at least 25 points") is a separate question, met or missed by the mean, and never changes a verdict.
Eight comparisons at 95 % are not corrected for being eight; and the intervals do not cover a second training run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.completions import GENERAL, OPEN_DOMAINS
from pipeline.statistics import Estimate, mean_ci, paired_difference, problem_means

MAY_FALL = 0.01  # share; less of a fall than this is none
MIN_PROBLEMS = 10  # below this a percentile bootstrap over problems is visibly too narrow


class Outcome(StrEnum):
    HOLDS = "holds"
    FAILS = "does not hold"
    NOISE = "within noise"
    UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`quantity` of checkpoint `higher` is above that of `lower`, or with a `margin` not more than that below."""

    higher: str
    lower: str
    quantity: str  # pass@1 | language_consistency | utility, which is of general answers
    margin: float = 0.0  # share in [0, 1]
    optional: bool = False  # left out when a checkpoint of it was not evaluated


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A size hoped for: of the first claim's difference, or the level of one checkpoint."""

    at_least: float  # share in [0, 1]
    level_of: str | None = None  # None: the difference; else the checkpoint whose own mean counts
    quantity: str = "pass@1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    key: str
    title: str
    paper: str  # what the paper reports, with its place
    claims: tuple[Claim, ...] = ()
    target: Target | None = None
    caveat: str = ""  # what it does not say when its optional claims are left out


FINDINGS = (
    Finding(
        key="rl_lifts_base",
        title="RL alone lifts the base model",
        paper="AIME 2024 pass@1 rises from 15.6 to 77.9 without any supervised data (R1-Zero, Fig. 1).",
        claims=(Claim(higher="zero", lower="base", quantity="pass@1"),),
        target=Target(at_least=0.25),
    ),
    Finding(
        key="cold_start_costs_accuracy",
        title="The small cold start lowers accuracy against zero",
        paper="AIME 2024: Zero 77.9, Dev1 59.0 (Table 3).",
        claims=(Claim(higher="zero", lower="dev1", quantity="pass@1"),),
    ),
    Finding(
        key="cold_start_readable",
        title="The small cold start raises language consistency",
        paper="R1-Zero mixes languages and is hard to read; the cold start mends it (Sec. 3). IF-Eval: 46.6 to 71.7.",
        claims=(Claim(higher="dev1", lower="zero", quantity="language_consistency"),),
    ),
    Finding(
        key="rl_restores",
        title="RL after the cold start restores reasoning",
        paper="AIME 2024: Dev1 59.0, Dev2 74.0 (Table 3).",
        claims=(Claim(higher="dev2", lower="dev1", quantity="pass@1"),),
        target=Target(at_least=0.10),
    ),
    Finding(
        key="language_reward",
        title="Language consistency does not fall during RL with the language reward",
        paper="Ablation: without the language reward consistency decays during RL; with it, it stays flat (Fig. 7).",
        claims=(
            Claim(higher="dev2", lower="dev1", quantity="language_consistency", margin=MAY_FALL),
            Claim(higher="dev2", lower="dev2_no_language", quantity="language_consistency", optional=True),
        ),
        caveat="That the reward is the cause is not measured: it takes the same stage without it, evaluated as "
        "dev2_no_language.",
        target=Target(at_least=0.98, level_of="r1", quantity="language_consistency"),
    ),
    Finding(
        key="chain_gains",
        title="The whole chain ends above the cold start",
        paper="AIME 2024: Dev1 59.0, R1 79.8 (Table 3).",
        claims=(Claim(higher="r1", lower="dev1", quantity="pass@1"),),
        target=Target(at_least=0.10),
    ),
    Finding(
        key="general_rl_helps",
        title="General RL raises what general answers are worth",
        paper="AlpacaEval 2.0: Dev3 62.1, R1 87.6; ArenaHard: 75.6 and 92.3 (Table 3). Here: their true utility.",
        claims=(Claim(higher="r1", lower="dev3", quantity="utility"),),
        target=Target(at_least=0.10),
    ),
    Finding(
        key="general_rl_keeps_reasoning",
        title="General RL keeps the reasoning",
        paper="AIME 2024: Dev3 78.1, R1 79.8; MATH-500: 95.4 and 97.3 (Table 3).",
        claims=(Claim(higher="r1", lower="dev3", quantity="pass@1", margin=MAY_FALL),),
        target=Target(at_least=-0.02),
    ),
    Finding(
        key="distilling_beats_rl",
        title="Distilling beats RL on the small student",
        paper="AIME 2024: Distill-Qwen-32B 72.6, Qwen2.5-32B with RL alone 47.0 (Table 16).",
        claims=(Claim(higher="student", lower="student_rl", quantity="pass@1"),),
    ),
    Finding(
        key="preference_hacking",
        title="Too much preference reward gets hacked",
        paper="Under the helpfulness reward model the reward rises while Codeforces falls (Fig. 6).",
        claims=(Claim(higher="dev3", lower="hacked", quantity="utility", optional=True),),
        caveat="Not measured by this chain. recipes/tiny/reward_hacking.yaml trains dev3 too long under a learned "
        "reward and evaluates it as hacked; the charts of its watch show the reward beside what it stands for.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedClaim:
    claim: Claim
    outcome: Outcome
    difference: Estimate | None  # higher - lower
    higher: float | None  # mean over the common problems
    lower: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTarget:
    target: Target
    value: Estimate
    met: bool  # by the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFinding:
    finding: Finding
    outcome: Outcome
    claims: tuple[CheckedClaim, ...]
    target: CheckedTarget | None
    reason: str = ""  # why it is not measured


@dataclass(frozen=True)
class Measurements:
    """Per-problem means of every checkpoint, from the rows of completions.parquet."""

    rows: tuple[Mapping[str, Any], ...]

    @cached_property
    def _by_checkpoint(self) -> dict[str, list[Mapping[str, Any]]]:
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            grouped.setdefault(row["checkpoint"], []).append(row)
        return grouped

    def has(self, checkpoint: str) -> bool:
        return checkpoint in self._by_checkpoint

    def of(self, checkpoint: str, quantity: str) -> dict[str, float]:
        """Problem -> mean: a utility is of general prompts, all else of what the headline scores are of."""
        rows = self._by_checkpoint.get(checkpoint, ())
        if quantity == "utility":
            return problem_means((r for r in rows if r.get("domain") == GENERAL), quantity)
        return problem_means((r for r in rows if r.get("domain") not in OPEN_DOMAINS), quantity)


def check_findings(completions: Iterable[Mapping[str, Any]]) -> list[CheckedFinding]:
    """Judge every finding. `completions` are the rows of completions.parquet; an empty iterable measures nothing."""
    measured = Measurements(tuple(completions))
    return [_check(finding, measured) for finding in FINDINGS]


def _check(finding: Finding, measured: Measurements) -> CheckedFinding:
    asked = [c for c in finding.claims if not c.optional or (measured.has(c.higher) and measured.has(c.lower))]
    claims = tuple(_check_claim(claim, measured) for claim in asked)
    outcome = combine([claim.outcome for claim in claims])
    reason = finding.caveat if len(asked) < len(finding.claims) else ""
    if claims and outcome is Outcome.UNMEASURED:
        names = dict.fromkeys(name for c in asked for name in (c.higher, c.lower))
        missing = [name for name in names if not measured.of(name, asked[0].quantity)]
        reason = (
            f"No scored completions of {' and '.join(missing)}."
            if missing
            else f"Fewer than {MIN_PROBLEMS} problems are common to both checkpoints."
        )
    return CheckedFinding(
        finding=finding,
        outcome=outcome,
        claims=claims,
        target=_check_target(finding.target, claims, measured),
        reason=reason,
    )


def combine(outcomes: list[Outcome]) -> Outcome:
    """Several claims of one finding: it holds when all of them hold, and one contradiction refutes it."""
    for outcome in (Outcome.FAILS, Outcome.NOISE, Outcome.UNMEASURED):
        if outcome in outcomes:
            return outcome
    return Outcome.HOLDS if outcomes else Outcome.UNMEASURED


def judge(difference: Estimate, margin: float = 0.0) -> Outcome:
    """The verdict on "this difference is above -margin"."""
    if difference.low > -margin:
        return Outcome.HOLDS
    return Outcome.FAILS if difference.high < -margin else Outcome.NOISE


def _check_claim(claim: Claim, measured: Measurements) -> CheckedClaim:
    higher, lower = measured.of(claim.higher, claim.quantity), measured.of(claim.lower, claim.quantity)
    common = sorted(higher.keys() & lower.keys())
    if len(common) < MIN_PROBLEMS:
        return CheckedClaim(claim=claim, outcome=Outcome.UNMEASURED, difference=None, higher=None, lower=None)
    difference = paired_difference(higher, lower)
    return CheckedClaim(
        claim=claim,
        outcome=judge(difference, claim.margin),
        difference=difference,
        higher=sum(higher[p] for p in common) / len(common),
        lower=sum(lower[p] for p in common) / len(common),
    )


def _check_target(
    target: Target | None, claims: tuple[CheckedClaim, ...], measured: Measurements
) -> CheckedTarget | None:
    if target is None:
        return None
    if target.level_of is None:
        value = claims[0].difference
    else:
        values = measured.of(target.level_of, target.quantity)
        value = mean_ci(np.array([values[p] for p in sorted(values)])[:, None]) if values else None
    if value is None:
        return None
    # Means are sums of fractions: a difference of exactly ten points must not miss by rounding.
    return CheckedTarget(target=target, value=value, met=value.mean >= target.at_least - 1e-9)
