"""Settings of the stages that make data for a generative reward model. Free of torch, so that recipes load fast."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from data.config import JudgingConfig, ProblemSource
from data.problem_pool import ProblemsConfig
from rewards.config import RewardWorkersConfig
from rollouts.config import GeneratorConfig, RolloutConfig


class GRMDataConfig(BaseModel, extra="forbid", frozen=True):
    """Rejective fine-tuning data (DeepSeek-GRM, section 3.1): sampled judgements that are right, of items not too easy.

    The set feeds the `sft` stage. The paper mixes 1,070K rows of general instructions with 186K of these.
    """

    problems: ProblemsConfig = Field(
        default=ProblemsConfig(judging=JudgingConfig()), description="the items to judge; `judging` must be set"
    )
    items: int = Field(default=1000, ge=1, description="items to judge; the paper has 186K rows of 3 samples each")
    samples_per_item: int = Field(default=3, ge=2, description="judgements sampled per item; the paper's N_RFT = 3")
    hinted: bool = Field(
        default=False,
        description="sample once more per item with the best response told, and keep what is right; the paper's "
        "option. Rows have the prompt without the hint. Such judgements tend to skip the critique on reasoning tasks",
    )
    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=0.5), description="how judgements are drawn; temperature 0.5 is the paper's"
    )
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="the sampling processes")
    reward_workers: RewardWorkersConfig = Field(default=RewardWorkersConfig(), description="the scoring processes")
    max_rows: int | None = Field(default=None, ge=1, description="rows kept at most, chosen by seed; none keeps all")
    chunk_prompts: int = Field(
        default=128, ge=1, description="items sampled and saved at a time: what a kill can cost; as in other stages"
    )
    held_out_sources: tuple[ProblemSource, ...] = Field(
        default=(), description="benchmarks to keep out: rows that share 10 words in a row with one are dropped"
    )

    @model_validator(mode="after")
    def _has_items(self) -> Self:
        if self.problems.judging is None:
            raise ValueError("problems.judging is not set, so there are no responses to judge; set e.g. {style: full}")
        return self


class GRMColdStartConfig(BaseModel, extra="forbid", frozen=True):
    """Written judgements that teach a tiny model the layout: templates of this project, not sampled from any model.

    Models that can follow instructions need none: they are asked in style `full`.
    """

    items: int = Field(default=1024, ge=1, description="judgements to write; about a thousand teach the layout")
    responses: tuple[int, ...] = Field(
        default=(2,), min_length=1, description="numbers of responses, in turn; as those it will judge"
    )
    languages: tuple[str, ...] = Field(default=("en", "zh"), min_length=1, description="languages, in turn")
    slip_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of judgements with one check misjudged, so that the judge is a learner and not an oracle; "
        "0 teaches what the rules say",
    )
