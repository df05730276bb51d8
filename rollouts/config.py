"""Settings of sampling, shared by every stage that samples. Free of torch, so that recipes load fast."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from data.chat import Template
from data.config import OPERATIONAL
from rollouts.records import SamplingParams


class GeneratorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The processes that sample, each with the embedded engine (rollouts.transformers_generator)."""

    replicas: int = Field(
        default=2, ge=1, description="generator processes; one per core is fastest for tiny models on CPU"
    )
    threads: int = Field(
        default=1, ge=1, description="compute threads of each replica; replicas x threads = cores is best"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU when there is one")
    max_slots: int = Field(
        default=256, ge=1, description="completions one replica extends at a time; bounded by memory"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of sampling; float32 is the fast one on CPUs and equals the trainer's"
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=1800.0, gt=0, description="seconds without a finished group before the run stops and says so"
    )


class RolloutConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How completions are drawn."""

    template: Template = Field(
        default="chat",
        description="how a prompt is rendered: chat (the tokenizer's), r1_zero (the paper's Table 1) or plain",
    )
    max_new_tokens: int = Field(
        default=32768, ge=1, description="longest completion, tokens; the paper's 32,768, far less for tiny models"
    )
    temperature: float = Field(default=1.0, ge=0, description="1.0 is the paper's for reasoning RL; 0.7 for general RL")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="nucleus; 1.0 keeps all: RL on truncated sampling needs objective.keep_sampling_mask",
    )
    top_k: int = Field(default=0, ge=0, description="0 keeps all, for the same reason")
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="drops tokens less likely than min_p times the most likely one; 0 keeps all, for the same reason",
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="strings that end a completion, which keeps them; none: only end-of-sequence tokens do"
    )

    @property
    def truncates(self) -> bool:
        return self.params(group_size=1, seed=0).truncates

    def params(self, group_size: int, seed: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            stop=self.stop,
            group_size=group_size,
            seed=seed,
        )
