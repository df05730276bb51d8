"""Settings of sampling, shared by every stage that samples. Free of torch, so that recipes load fast."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.chat import Template
from data.config import OPERATIONAL
from rollouts.records import SamplingParams


class WeightSyncConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How new weights reach the generators, and how it is proved that they did."""

    transport: Literal["object_store", "collective", "shared_memory", "files"] = Field(
        default="object_store",
        description="object_store: buckets through Ray's shared memory, and its network between nodes, which works "
        "everywhere; collective: one broadcast to all (NCCL between GPUs, else gloo); shared_memory: generators map "
        "the trainer's buckets, on one host and GPU; files: safetensors in a folder that trainer and generators share",
    )
    wire: Literal["float32", "bfloat16", "fp8"] = Field(
        default="float32",
        description="format on the way; fp8 is V3's (E4M3, a scale per 128x128 block) and halves bfloat16. Anything "
        "but the trainer's own precision makes the policy that samples another one than the policy that trains",
    )
    bucket_mib: int = Field(
        default=256, ge=1, description="size of one bucket: trainer and generator each hold about two at a time"
    )
    checksums: Annotated[bool, OPERATIONAL] = Field(
        default=True,
        description="compare a checksum of every tensor on arrival; costs about a tenth of a sync or less, and "
        "sees what hides below the rounding of a coarse wire. Files have none",
    )
    probe_prompts: Annotated[int, OPERATIONAL] = Field(
        default=4, ge=0, description="prompts whose logprobs trainer and generators compare after every sync; 0: none"
    )
    probe_limit: Annotated[float | None, OPERATIONAL] = Field(
        default=None,
        gt=0,
        description="nats; the run stops when a generator's logprobs of the probe differ more than this on average. "
        "null takes 1e-4 in float32, 0.1 where bfloat16 and 0.3 where fp8 is involved",
    )


class GeneratorConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The processes that sample."""

    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="transformers: embedded, nothing more to install; vllm: the serving engine (extra install)",
    )
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
    tensor_parallel: int = Field(default=1, ge=1, description="vllm: GPUs of one replica that split every layer")
    nodes: int = Field(
        default=1, ge=1, description="vllm: nodes with equal parts of these GPUs, for what no single node holds"
    )
    expert_parallel: bool = Field(
        default=False, description="vllm: spread whole experts over a replica's GPUs instead of splitting each"
    )
    sleep: bool = Field(
        default=False, description="vllm: give the GPU memory back while the trainer works on the same devices"
    )
    engine_args: dict[str, Any] = Field(
        default={}, description="vllm: further arguments of its engine, e.g. {gpu_memory_utilization: 0.6}"
    )
    work_stealing: bool = Field(
        default=False,
        description="idle replicas take prompts that others have not begun: faster where lengths differ much. Who "
        "samples what then depends on timing, and with it the last bits of logprobs",
    )
    sync: WeightSyncConfig = Field(default=WeightSyncConfig(), description="weights on their way to the generators")
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=1800.0, gt=0, description="seconds without a finished group before the run stops and says so"
    )

    @model_validator(mode="after")
    def _settings_are_used(self) -> Self:
        default = {name: field.default for name, field in type(self).model_fields.items()}
        ignored = [name for name in _VLLM_ONLY if getattr(self, name) != default[name]]
        if self.engine != "vllm" and ignored:
            raise ValueError(f"generator.{ignored[0]} is for engine vllm, and would be ignored by {self.engine}")
        if self.sync.transport == "shared_memory" and self.tensor_parallel > 1:
            raise ValueError(
                "generator.sync.transport shared_memory: the trainer's memory is on one device, and tensor_parallel "
                f"{self.tensor_parallel} takes more; use collective"
            )
        if self.tensor_parallel % self.nodes:
            raise ValueError(
                f"generator.tensor_parallel {self.tensor_parallel} cannot be spread evenly over {self.nodes} nodes"
            )
        return self

    def replica_settings(self) -> dict[str, Any]:
        """Keyword arguments of the engine's class; of its nodes `GeneratorPool` makes members."""
        names = ("max_slots", "dtype", "device", *(_VLLM_ONLY if self.engine == "vllm" else ()))
        return {name: getattr(self, name) for name in names if name != "nodes"}


_VLLM_ONLY = ("tensor_parallel", "nodes", "expert_parallel", "sleep", "engine_args")


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
        """Whether tokens are drawn from a part of the vocabulary."""
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


class JudgeServiceConfig(BaseModel, extra="forbid", frozen=True):
    """The processes of a stage's judges (its inputs `grm` and `judge`), and how they draw their judgements."""

    generator: GeneratorConfig = Field(
        default=GeneratorConfig(replicas=1), description="the sampling processes of each judge; one shares the cores"
    )
    rollout: RolloutConfig = Field(
        default=RolloutConfig(temperature=0.5, max_new_tokens=4096),
        description="temperature 0.5 is DeepSeek-GRM's; votes differ by it and by the order of what is judged",
    )
