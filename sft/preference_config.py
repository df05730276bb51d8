"""Settings of the preference stages. Free of torch, so that recipes load fast."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.chat import Layout
from data.config import OPERATIONAL, PreferenceSource, ProblemSource
from data.problem_pool import ProblemsConfig
from rewards.config import RewardWorkersConfig
from rewards.endpoint_config import EndpointConfig
from rewards.rule_judge import RuleJudgeConfig
from rewards.verdicts import DEFAULT_GUIDELINES
from rollouts.config import GeneratorConfig, RolloutConfig
from training.config import OptimizerConfig, TrainingConfig

Objective = Literal["helpful", "safety"]
RewardObjective = Literal["helpful", "safety", "judgement"]


class JudgeConfig(BaseModel, extra="forbid", frozen=True):
    """Who judges: a server, a checkpoint (the stage's input `judge`), or the miniature's rule."""

    kind: Literal["endpoint", "checkpoint", "rule"] = Field(
        default="checkpoint", description="checkpoint: a model of your own samples its judgements; no service is needed"
    )
    name: str = Field(
        default="", description="what rows call the judge; empty: the endpoint's model, or the kind of judge"
    )
    endpoint: EndpointConfig = Field(default=EndpointConfig(), description="the server, for kind endpoint")
    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=0.0, max_new_tokens=4096),
        description="how a checkpoint's judgements are sampled; greedy first, and at temperature 1 where that said "
        "nothing readable",
    )
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="a checkpoint's processes")
    rule: RuleJudgeConfig = Field(default=RuleJudgeConfig(), description="the rule's faults, for kind rule")
    guidelines: str = Field(
        default=DEFAULT_GUIDELINES,
        min_length=1,
        description="what is unsafe, for objective safety; R1's guidelines are not published, so this is a start",
    )
    retries: Annotated[int, OPERATIONAL] = Field(
        default=3, ge=0, description="further tries where an answer holds no readable verdict, or none comes"
    )
    failed_limit: Annotated[float, OPERATIONAL] = Field(
        default=0.05,
        ge=0,
        le=1,
        description="largest share of queries without a readable verdict after all retries; above it the stage stops",
    )

    @model_validator(mode="after")
    def _endpoint_is_named(self) -> Self:
        if self.kind == "endpoint" and not (self.endpoint.url and self.endpoint.model):
            raise ValueError("judge: kind endpoint needs endpoint.url and endpoint.model")
        return self

    @property
    def shown_name(self) -> str:
        return self.name or (self.endpoint.model if self.kind == "endpoint" else self.kind)


class PreferenceDataConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Preference pairs or safety labels: several responses per prompt, judged (DeepSeek-R1, section 3.1 and B.2)."""

    objective: Objective = Field(
        default="helpful", description="helpful: pairs of final summaries; safety: labels of whole responses"
    )
    problems: ProblemsConfig = Field(
        default=ProblemsConfig(instruction_share=1.0), description="prompts; general ones, as the paper's"
    )
    prompts: int = Field(default=66_000, ge=1, description="prompts; the paper has 66,000 pairs and 106,000 labels")
    responses_per_prompt: int = Field(
        default=2, ge=1, description="of each checkpoint in `policies`; 2 make a pair, number not stated in the paper"
    )
    pairs_per_prompt: int = Field(
        default=1,
        ge=1,
        description="pairs that are judged of one prompt's responses, at most; 1 gives the most prompts",
    )
    written_answers: bool = Field(
        default=False,
        description="add a good and a bad written answer to each prompt's responses. For the tiny chain's own prompts "
        "only, whose policies hardly ever refuse or err on purpose",
    )
    borrowed_responses: int = Field(
        default=0,
        ge=0,
        description="responses to other prompts that are judged with a prompt's own, so that a reward model has to "
        "read the prompt (sft.borrowed); 0 as in the paper",
    )
    layout: Layout | None = Field(
        default="summary",
        description="responses must keep this layout to be judged; null: all are, as chat models' are",
    )
    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=1.0), description="temperature 1: responses of a prompt must differ"
    )
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="the sampling processes")
    reward_workers: RewardWorkersConfig = Field(
        default=RewardWorkersConfig(), description="the processes that check the layout"
    )
    chunk_prompts: int = Field(default=128, ge=1, description="prompts sampled and saved at a time")
    judge: JudgeConfig = Field(default=JudgeConfig(), description="who judges, and how often it may fail")
    queries: int = Field(
        default=4, ge=1, description="judgements of one pair, half of them with the responses swapped; the paper's 4"
    )
    min_gap: float = Field(
        default=1.0,
        ge=0,
        lt=2,
        description="pairs are kept when the mean verdict is above this, significantly better being 2 and slightly "
        "better 1; the paper's 1, the numbers are ours",
    )
    label_agreement: float = Field(
        default=0.75, gt=0.5, le=1, description="share of a response's queries that must agree on a safety label; ours"
    )
    balance_within: float | None = Field(
        default=0.05,
        ge=0,
        description="chosen and rejected responses are made equally long on average, in characters and up to this "
        "share of their mean length, by dropping the pairs that differ most; null keeps all. The paper balances and "
        "does not say how",
    )
    balance_drop_limit: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="largest share of the judged pairs that balancing may drop; ours. Where half of them are not "
        "enough, better pairs are wanted, not fewer: the rest stay unbalanced, and the data card says so",
    )
    held_out_sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="benchmarks no prompt, response or listed record may share 10 words in a row with (R1, D.1)",
    )
    sources: tuple[PreferenceSource, ...] = Field(
        default=(), description="files or data sets that people have labelled, added as they are; none by default"
    )


class RewardModelConfig(TrainingConfig, extra="forbid", frozen=True, allow_inf_nan=False):
    """A reward model: the policy's architecture with a scalar head (DeepSeek-R1, section 3.1)."""

    objective: RewardObjective = Field(
        default="helpful",
        description="helpful: pairwise, Bradley-Terry; safety: point-wise, binary cross-entropy; judgement: the same "
        "on right and wrong judgements, for a meta RM (DeepSeek-GRM). R1's paper says pairwise and point-wise, the "
        "formulas are ours",
    )
    epochs: int = Field(default=1, ge=1, description="passes over the data; the paper's 1")
    batch_size: int = Field(default=256, ge=1, description="pairs, or labels, per optimizer step; the paper's 256")
    max_length: int = Field(
        default=8192,
        ge=16,
        description="longest prompt and response in training, tokens; the paper's 8,192. Scoring has no limit but the "
        "model's context",
    )
    held_out_share: float = Field(
        default=0.1, gt=0, lt=1, description="share of the prompts that are never trained on and measure the model"
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=6e-6), description="6e-6, as the paper; constant, since its schedule is not stated"
    )

    @model_validator(mode="after")
    def _is_trained_as_a_whole(self) -> Self:
        if self.optimizer.ema_decay > 0:
            raise ValueError("optimizer.ema_decay: a reward model keeps no average of its weights; leave it out")
        for key in ("pipeline", "context"):
            if getattr(self.trainer.mesh, key) > 1:
                raise ValueError(f"trainer.mesh: a reward model needs whole rows and layers; set {key} to 1")
        if self.trainer.lora is not None:
            raise ValueError("trainer.lora: a reward model learns with all its weights; leave lora out")
        return self
