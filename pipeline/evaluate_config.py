"""Settings of the evaluate stage. Free of torch, so that recipes load fast."""

from typing import Any, Self

from pydantic import BaseModel, Field, PositiveInt, model_validator

from data.chat import Layout, Template
from data.problem_pool import ProblemsConfig
from rewards.combine import check_rewards
from rewards.config import RewardSpec, RewardWorkersConfig
from rollouts.config import GeneratorConfig, RolloutConfig

CODE = "rewards.code:Code"
DEFAULT = "default"  # the entry of `prompting` for checkpoints that have none of their own


class Prompting(BaseModel, extra="forbid", frozen=True):
    """How a checkpoint is asked, and the layout that counts as well-formed: those it was trained with."""

    template: Template = Field(
        default="chat",
        description="how prompts are rendered: chat (the tokenizer's), r1_zero (the paper's Table 1) or plain",
    )
    layout: Layout = Field(
        default="summary", description="layout the format rate looks for: summary (R1) or answer_tags (Zero)"
    )


_CHAT, _UNTUNED = Prompting(), Prompting(template="plain", layout="answer_tags")


class EvaluateConfig(BaseModel, extra="forbid", frozen=True):
    """Every checkpoint on the same held-out problems: pass@1, pass@k, cons@k, format, language consistency, length."""

    problems: ProblemsConfig = Field(
        default=ProblemsConfig(),
        description="what held-out reasoning problems are drawn from; files are taken as they are",
    )
    problem_seed: int = Field(
        default=0, description="seed of the problems; not the run's, so that all runs and seeds face the same ones"
    )
    num_problems: int = Field(
        default=500,
        ge=1,
        description="reasoning problems; with 500, pass@1 has an interval of about 8 points",
    )
    general_problems: int = Field(
        default=100,
        ge=0,
        description="held-out general instructions, scored as domain 'general' and not part of 'overall'",
    )
    samples: int = Field(
        default=4, ge=1, description="completions per problem; the paper's 4 to 64 (D.1), 4 where problems are many"
    )
    samples_for: dict[str, PositiveInt] = Field(
        default={},
        description="checkpoint -> completions per problem where it differs, e.g. {base: 16} to show its pass@16",
    )
    general_samples: int | None = Field(
        default=None,
        ge=1,
        description="completions per prompt of domain 'general' by every checkpoint, whatever samples_for says: more "
        "than per problem where these prompts are few; null: as many",
    )
    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=0.6, top_p=0.95),
        description="temperature 0.6 and top-p 0.95, as the paper (D.1)",
    )
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="the sampling processes")
    prompting: dict[str, Prompting] = Field(
        default={DEFAULT: _CHAT, "base": _UNTUNED, "zero": _UNTUNED, "student_base": _UNTUNED, "student_rl": _UNTUNED},
        description="checkpoint, or 'default', -> template and layout; plain and answer_tags for what never saw a chat",
    )
    reward_workers: RewardWorkersConfig = Field(default=RewardWorkersConfig(), description="the grading processes")
    code: dict[str, Any] = Field(
        default={},
        description="options of rewards.code:Code, which judges programs, e.g. {workers: 4}; its own defaults",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.rollout.template != "chat":
            raise ValueError("rollout.template has no effect here; set prompting.<checkpoint>.template instead")
        if self.problems.instruction_share:
            raise ValueError("problems.instruction_share has no effect here; set general_problems instead")
        return self

    @model_validator(mode="after")
    def _code_has_such_options(self) -> Self:
        if self.code:
            check_rewards([RewardSpec(use=CODE, options=self.code)])
        return self

    def prompting_of(self, checkpoint: str) -> Prompting:
        return self.prompting.get(checkpoint, self.prompting.get(DEFAULT, _CHAT))

    def samples_of(self, checkpoint: str) -> int:
        """Completions per reasoning problem."""
        return self.samples_for.get(checkpoint, self.samples)

    def general_samples_of(self, checkpoint: str) -> int:
        """Completions per general instruction."""
        return self.general_samples or self.samples_of(checkpoint)
