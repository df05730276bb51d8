"""Settings of the supervised stages. Free of torch, so that recipes load fast."""

from typing import Literal, Self

from pydantic import BaseModel, Field, FilePath, model_validator

from data.chat import Template
from data.config import ProblemSource
from data.problem_pool import ProblemsConfig
from models.config import TinyModelConfig
from rewards.config import RewardSpec, RewardWorkersConfig
from rollouts.config import GeneratorConfig, JudgeServiceConfig, RolloutConfig
from sft.filters import FilterConfig
from training.config import OptimizerConfig, TrainingConfig

IndexerStage = Literal["frozen", "warmup", "joint"]


class PretrainConfig(TrainingConfig, extra="forbid", frozen=True):
    """A tiny base model from scratch, on procedural text of uneven quality."""

    model: TinyModelConfig = Field(default=TinyModelConfig(), description="shape of the model")
    corpus_seed: int = Field(default=0, description="seed of text and tokenizer; equal seeds share a tokenizer")
    tokenizer_documents: int = Field(default=8000, ge=100, description="documents the tokenizer is trained on")
    steps: int = Field(default=2000, ge=1, description="optimizer steps; more make a better base")
    documents_per_step: int = Field(default=96, ge=1, description="documents per optimizer step, about 40 tokens each")
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.1),
        description="from-scratch training of a small model wants a high rate and decay",
    )
    mtp_weight: float = Field(
        default=0.1, ge=0, description="weight of the multi-token-prediction loss; V3's late value"
    )
    save_dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="precision of the checkpoint; bfloat16 halves what is committed or shipped"
    )
    bias_speed: float = Field(default=0.001, ge=0, description="speed of aux-loss-free balance; V3's")
    balance_weight: float = Field(
        default=1e-4, ge=0, description="weight of the sequence-wise balance loss; V3's alpha (section 4.2)"
    )

    @model_validator(mode="after")
    def _has_weights_to_learn(self) -> Self:
        if self.trainer.lora is not None:
            raise ValueError("trainer.lora: a model from scratch has no weights to keep at rest; leave it out")
        return self


class SFTConfig(TrainingConfig, extra="forbid", frozen=True):
    """Supervised fine-tuning on conversations; loss on assistant tokens only."""

    template: Template = Field(default="chat", description="how prompts are rendered; R1's chat template from Dev1 on")
    epochs: int = Field(default=2, ge=1, description="passes over the data; 2-3 in the paper (B.4.2)")
    batch_size: int = Field(default=128, ge=1, description="samples per optimizer step; 128 in the paper (B.4.2)")
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=5e-5, schedule="cosine"),
        description="cosine from 5e-5 to 10 %, as the paper (B.4.2)",
    )
    mtp_weight: float = Field(
        default=0.1, ge=0, description="weight of the multi-token-prediction loss; not stated for SFT"
    )
    bias_speed: float = Field(
        default=0.0, ge=0, description="speed of aux-loss-free balance; not stated for SFT, 0 is ours"
    )
    balance_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the sequence-wise balance loss; not stated for SFT: 0 leaves the routers to the data",
    )
    indexer: IndexerStage = Field(
        default="frozen",
        description="DeepSeek-V3.2's indexers: frozen = at rest, attention to all earlier tokens, right up to "
        "index_topk; warmup = they alone learn where attention looks (V3.2, section 2.1: lr 1e-3, 1000 steps of 16 x "
        "128K tokens); joint = attention sees what they choose, and they learn beside the model (lr 7.3e-6 there)",
    )

    @model_validator(mode="after")
    def _indexers_can_learn(self) -> Self:
        moved = [name for name in ("bias_speed", "balance_weight") if getattr(self, name) > 0]
        if self.indexer == "warmup" and moved:
            raise ValueError(f"indexer: warmup trains indexers alone, and {moved[0]} moves routers; set it to 0")
        if self.indexer != "frozen" and self.trainer.lora is not None:
            raise ValueError(f"indexer: {self.indexer} trains indexers, which trainer.lora leaves at rest; drop one")
        for key in ("pipeline", "context"):
            if self.indexer != "frozen" and getattr(self.trainer.mesh, key) > 1:
                raise ValueError(f"indexer: {self.indexer} needs whole rows and layers; set trainer.mesh.{key} to 1")
        if self.indexer != "frozen" and self.trainer.recompute == "norms_and_up_projections":
            raise ValueError(
                f"indexer: {self.indexer} computes a loss inside attention, which trainer.recompute "
                "norms_and_up_projections would keep with all its scores; set it to blocks or none"
            )
        return self


class CurationConfig(BaseModel, extra="forbid", frozen=True):
    """What cold start and rejection sampling share: sample on problems, verify, filter."""

    problems: ProblemsConfig = Field(default=ProblemsConfig(), description="prompts to sample on")
    prompts: int = Field(default=1000, ge=1, description="prompts to sample on; the paper says 'thousands' (B.3.2)")
    samples_per_prompt: int = Field(default=4, ge=1, description="completions per prompt; 'several' in the paper")
    rollout: RolloutConfig = Field(
        default=RolloutConfig(), description="temperature 1: diversity, the verifier does the rest"
    )
    generator: GeneratorConfig = Field(default=GeneratorConfig(), description="the sampling processes")
    reward_workers: RewardWorkersConfig = Field(default=RewardWorkersConfig(), description="the scoring processes")
    filters: FilterConfig = Field(default=FilterConfig(), description="correct, readable, one language")
    max_rows: int | None = Field(default=None, ge=1, description="rows kept at most, chosen by seed; none keeps all")
    chunk_prompts: int = Field(
        default=128,
        ge=1,
        description="prompts sampled and saved at a time: what a kill can cost; more keep replicas busier",
    )
    held_out_sources: tuple[ProblemSource, ...] = Field(
        default=(),
        description="benchmarks to keep out: rows that share 10 words with one are dropped, as in the paper (D.1)",
    )


class ColdStartConfig(CurationConfig, extra="forbid", frozen=True):
    """Cold-start data: readable samples of R1-Zero (and few-shot or listed ones), re-formatted to think + summary."""

    rollout: RolloutConfig = Field(
        default=RolloutConfig(template="r1_zero", temperature=1.0),
        description="R1-Zero's own template, temperature 1 (B.3.2)",
    )
    filters: FilterConfig = Field(
        default=FilterConfig(layout="answer_tags", max_per_problem=1), description="correct, readable, one language"
    )
    few_shot: int = Field(
        default=0,
        ge=0,
        description="worked examples put before each prompt for a second set of samples; 0: none, as B.3.2",
    )
    dataset: FilePath | None = Field(
        default=None,
        description="JSONL or parquet file of conversations, added as they are, or none; relative to the recipe",
    )


class RejectionSamplingConfig(CurationConfig, extra="forbid", frozen=True):
    """The curated set: several samples per prompt, verified, filtered, plus non-reasoning data (B.3.3)."""

    rewards: tuple[RewardSpec, ...] = Field(
        default=(RewardSpec(use="rewards.accuracy:Accuracy"),), description="what a completion must pass"
    )
    filters: FilterConfig = Field(default=FilterConfig(max_per_problem=2), description="readability filters")
    general_share: float = Field(
        default=0.25, ge=0, lt=1, description="share of non-reasoning rows in the result; 200k of 800k in the paper"
    )
    general_dataset: FilePath | None = Field(
        default=None,
        description="JSONL or parquet file of conversations that fill this share; none: instructions of the tiny "
        "chain, with written answers. Relative to the recipe",
    )
    judges: JudgeServiceConfig = Field(
        default=JudgeServiceConfig(),
        description="the processes of the inputs `judge` and `grm`, where rewards ask a judge: for problems that no "
        "rule can check (B.3.3)",
    )

    @model_validator(mode="after")
    def _general_rows_are_yours(self) -> Self:
        if self.problems.sources and self.general_share and self.general_dataset is None:
            raise ValueError(
                f"general_share {self.general_share:g} would be instructions of the tiny chain among your problems; "
                "name conversations of your own as general_dataset, or set general_share: 0"
            )
        if self.general_dataset is not None and not self.general_share:
            raise ValueError("general_dataset is not used while general_share is 0")
        return self
