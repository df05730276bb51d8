"""The `rewards` section of a recipe: a list of RewardSpec."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from data.config import OPERATIONAL


class RewardSpec(BaseModel, extra="forbid", frozen=True):
    """One term of the reward.

    Example (R1's last stage: preference only in the last 400 of 1,700 steps):
        {use: "rewards.preference:HelpfulReward", domains: [general], from_share: 0.765}
    """

    use: str = Field(description="Import path of the reward class as module:Class, e.g. rewards.accuracy:Accuracy.")
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="Factor of this term in the sum; 1 since R1 adds its terms directly (Eq. 8).",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the reward class; none takes its defaults."
    )
    domains: list[str] | None = Field(
        default=None, description="Problem domains this term applies to; none means all, as for R1's language reward."
    )
    except_domains: list[str] = Field(
        default_factory=list,
        description="Problem domains this term does not apply to; none. Saves listing all others in `domains`.",
    )
    from_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the stage's steps after which this term counts; 0 means from the start.",
    )


class RewardWorkersConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The processes that score, beside those that sample."""

    workers: Annotated[int, OPERATIONAL] = Field(
        default=1, ge=1, description="processes; more where scoring is slower than sampling, e.g. programs to run"
    )
    max_pending: Annotated[int, OPERATIONAL] = Field(
        default=64, ge=1, description="groups waiting per worker before sampling waits; bounds memory"
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=600.0,
        gt=0,
        description="seconds a worker may be silent while it has work; then it is replaced and the group unscorable",
    )
