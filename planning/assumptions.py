"""Everything a plan takes for granted, in one place, each with its reason. `r1 plan --assume NAME=VALUE` sets one."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError


class BadAssumption(ValueError):
    """An assumption that is not there, or out of range."""


class Assumptions(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What no recipe says and no data sheet prints. "Ours" marks a guess without a source."""

    completion_share: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="mean length of sampled completions as a share of the longest allowed: R1 thinks 8,793 tokens on "
        "average in contests under 32,768 (R1, E.4), its curated set has 5,355",
    )
    length_sigma: float = Field(
        default=0.8,
        ge=0,
        le=3,
        description="spread of completion lengths: standard deviation of the logarithm of a lognormal that is cut off "
        "at the longest allowed. 0: all equal. Ours; at 0.8 one in twenty is 2.7 times the mean",
    )
    prompt_tokens: int = Field(
        default=256,
        ge=1,
        description="tokens of a prompt: 122 in maths, 161 in STEM, some 420 in logic (R1, Table 4); and a template",
    )
    answer_tokens: int = Field(
        default=600, ge=1, description="tokens of an answer to a general prompt and of a judgement. Ours"
    )
    judged_share: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="share of completions that go to a judge, where rewards are for some domains only. Ours",
    )
    dataset_rows: int = Field(
        default=100_000, ge=1, description="rows of a data set that is neither there nor made by the pipeline. Ours"
    )
    row_tokens_mean: int = Field(
        default=5355,
        ge=1,
        description="tokens of a row of such a data set: the mean of R1's curated set (Table 5); at most a quarter of "
        "the model's context",
    )
    kept_share: float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="share of sampled completions that filters keep, where max_rows does not say how many. Ours",
    )
    train_mfu: float = Field(
        default=0.35,
        gt=0,
        le=1,
        description="share of the bfloat16 peak that training in bfloat16 or fp8 achieves on a GPU, pipelines' waiting "
        "apart: DeepSeek-V3's 180K H800 hours per trillion tokens are 342 TFLOP/s of 6 x 37B FLOPs a token, in FP8 and "
        "with all waiting",
    )
    float32_mfu: float = Field(
        default=0.5, gt=0, le=1, description="the same of the float32 peak for float32: large products get half. Ours"
    )
    prefill_mfu: float = Field(
        default=0.35, gt=0, le=1, description="the same for prompts and for logprobs: a forward pass alone. Ours"
    )
    decode_mfu: float = Field(
        default=0.2, gt=0, le=1, description="share of the peak that the products of a decoding step achieve. Ours"
    )
    bandwidth_share: float = Field(
        default=0.7, gt=0, le=1, description="share of the memory bandwidth that decoding achieves. Ours"
    )
    decode_latency_per_layer_s: float = Field(
        default=1e-4,
        ge=0,
        description="seconds that a layer takes in decoding however small the batch: launches, and two exchanges "
        "between the devices of a replica. 1e-4 across nodes is ours: DeepSeek's service, of 61 layers, takes 45 to 50 "
        "ms a token at large batches (open-infra-index, 2025), of which this is 6",
    )
    memory_share: float = Field(
        default=0.92,
        gt=0,
        le=1,
        description="share of a GPU's memory that tensors may take; the rest is the driver's, NCCL's and lost between "
        "blocks. What vLLM takes by default",
    )
    split_latent_cache: bool = Field(
        default=False,
        description="whether the devices of a replica share out the completions' MLA latents. vLLM under tensor "
        "parallelism keeps them whole on each device, since all heads read them; serving with data-parallel attention "
        "does not (V3, section 3.4)",
    )
    draft_speedup: float = Field(
        default=1.0,
        ge=1,
        le=4,
        description="decoding with the MTP layer as a draft: tokens per step. 1: the recipes do not draft; DeepSeek-V3 "
        "has 1.8 (section 5.4.3), and R1's rollouts drafted (B.1)",
    )
    link_share: float = Field(
        default=0.7, gt=0, le=1, description="share of a link's bandwidth that weight sync achieves. Ours"
    )
    offload_s: float = Field(
        default=0.0,
        ge=0,
        description="seconds per rollout batch for what leaves the device and comes back between phases. 0: where "
        "`optimizer.offload` is none nothing does",
    )
    step_overhead_s: float = Field(
        default=1.0,
        ge=0,
        description="seconds per optimizer step on a GPU cluster for dealing rows, collecting metrics and the "
        "rank that lags. Ours",
    )

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Self:
        """Raises BadAssumption with one sentence."""
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise BadAssumption(f"--assume {name}: there is no such assumption; known: {known}") from None
            raise BadAssumption(f"--assume {name}={fault['input']}: {fault['msg']}") from None

    def changed(self) -> dict[str, Any]:
        """Those that differ from their defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if getattr(self, name) != _DEFAULT[name]}


_DEFAULT = {name: field.default for name, field in Assumptions.model_fields.items()}

# How DeepSeek serves, as far as its papers say so: what `--assume paper` sets. Each has its source above.
PAPER: dict[str, Any] = {"split_latent_cache": True, "draft_speedup": 1.8}
