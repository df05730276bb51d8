"""Settings of distillation. Free of torch, so that recipes load fast."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.chat import Template
from data.config import OPERATIONAL
from rl.config import OwnSamplesConfig
from training.config import OptimizerConfig, TrainingConfig


class KLConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What a student is told by its teacher's probabilities, in place of its text."""

    direction: Literal["forward", "reverse"] = Field(
        default="reverse",
        description="reverse, KL(student || teacher): say what the teacher likes best (DeepSeek-V4, Eq. 29); forward, "
        "KL(teacher || student): cover all that it might say (Hinton et al.)",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="the teacher's most likely tokens that are compared, all others as one more outcome; none: the "
        "whole vocabulary, by the teacher's hidden states and head, as DeepSeek-V4 (section 5.2)",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        description="of both distributions; 1 compares what is sampled, more the unlikely tokens too, with "
        "gradients that shrink by its square (scale the learning rate)",
    )


class TeacherProcessConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The process that reads with the teacher's eyes."""

    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="transformers: embedded, hidden states too; vllm: for large teachers, by kl.top_k alone",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU when there is one")
    tensor_parallel: int = Field(default=1, ge=1, description="vllm: GPUs that split every layer of the teacher")
    threads: int = Field(default=1, ge=1, description="compute threads on CPU")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="precision of the teacher; float32 is right for tiny models on CPUs"
    )
    row_tokens: int = Field(default=4096, ge=64, description="tokens of a forward pass; bounded by memory")
    engine_args: dict[str, Any] = Field(default={}, description="vllm: further arguments of its engine")
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=1800.0, gt=0, description="seconds that one batch may take before the run stops"
    )


class DistillConfig(TrainingConfig, extra="forbid", frozen=True):
    """A dense student on the curated set, no RL (DeepSeek-R1, arXiv:2501.12948v2, B.4.3): on its text alone, or, given
    an input `teacher` or a dataset with a teacher's logprobs, on the teacher's probabilities of it."""

    template: Template = Field(default="chat", description="how prompts are rendered, by the student's own tokenizer")
    epochs: int = Field(default=2, ge=1, description="passes over the data; 2-3 in the paper (B.4.3)")
    batch_size: int = Field(default=64, ge=1, description="samples per optimizer step; 64 in the paper (B.4.3)")
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="tokens to learn from, after which training ends within `epochs`, so that methods are compared at "
        "equal cost; none: the epochs decide",
    )
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-4, schedule="cosine"),
        description="cosine to 10 %; lr by student (Table 6): Qwen 1.5B 1e-4, 7B 8e-5, 14B 7e-5, 32B 6e-5, "
        "Llama 8B 5e-5, 70B 2e-5; tiny models need ~1e-3",
    )
    kl: KLConfig | None = Field(
        default=None,
        description="learn the teacher's probabilities (logit distillation) instead of the text; none: the text, as "
        "the paper, where no input `teacher` is given and no logprobs are stored",
    )
    teacher: TeacherProcessConfig = Field(
        default=TeacherProcessConfig(), description="the process of the input `teacher`"
    )

    @model_validator(mode="after")
    def _engine_can_tell(self) -> Self:
        if self.kl is not None:
            check_teacher(self.teacher, self.kl.top_k, self.kl.temperature)
        elif self.teacher != TeacherProcessConfig():
            raise ValueError("teacher is set while kl is not, so it would be ignored; set kl: {} too")
        return self


class TeacherLogprobsConfig(BaseModel, extra="forbid", frozen=True):
    """A dataset with its teacher's most likely tokens at every place: computed once, for any number of students."""

    template: Template = Field(default="chat", description="how prompts are rendered; the student's must be the same")
    top_k: int = Field(
        default=64, ge=1, description="tokens stored per place, 8 bytes each; 64 leave little to the one for all others"
    )
    temperature: float = Field(default=1.0, gt=0, description="of the distribution that is stored; see kl.temperature")
    chunk_rows: int = Field(default=512, ge=1, description="rows read and saved at a time: what a kill can cost")
    teacher: TeacherProcessConfig = Field(default=TeacherProcessConfig(), description="the process of the teacher")

    @model_validator(mode="after")
    def _engine_can_tell(self) -> Self:
        check_teacher(self.teacher, self.top_k, self.temperature)
        return self


class OnPolicyDistillConfig(OwnSamplesConfig, extra="forbid", frozen=True):
    """The student samples, and learns from what its teachers would have said at every token of it: DeepSeek-V4's
    replacement for mixed RL (arXiv:2606.19348, section 5.1)."""

    steps: int = Field(default=200, ge=1, description="optimizer steps, one per rollout batch; not stated in V4")
    questions_per_step: int = Field(default=64, ge=1, description="questions of a rollout batch; not stated in V4")
    samples_per_question: int = Field(
        default=1, ge=1, description="completions of each; 1, since none is compared with another"
    )
    kl: KLConfig = Field(default=KLConfig(), description="reverse and over the whole vocabulary, as V4")
    weights: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = Field(
        default={},
        description="domain -> teacher -> weight of its KL, for several teachers (V4: 'teacher matched to task "
        "context'); a domain that is not listed listens to all alike, with weights that sum to 1",
    )
    teacher: TeacherProcessConfig = Field(default=TeacherProcessConfig(), description="the process of each teacher")
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-5), description="not stated in V4; tiny models need ~3e-4"
    )
    log_samples: int = Field(default=8, ge=0, description="completions kept in samples.jsonl per rollout batch")

    @model_validator(mode="after")
    def _engine_can_tell(self) -> Self:
        check_teacher(self.teacher, self.kl.top_k, self.kl.temperature)
        return self

    @model_validator(mode="after")
    def _someone_is_listened_to(self) -> Self:
        for domain, weights in self.weights.items():
            if not sum(weights.values()):
                raise ValueError(f"weights: no teacher of domain {domain} has a weight above 0")
        return self

    def weights_of(self, domain: str, teachers: tuple[str, ...]) -> dict[str, float]:
        """Teacher -> weight, without those that have none."""
        weights = self.weights.get(domain) or dict.fromkeys(teachers, 1 / len(teachers))
        return {teacher: weight for teacher, weight in weights.items() if weight}


def check_teacher(teacher: TeacherProcessConfig, top_k: int | None, temperature: float) -> None:
    """Raises ValueError for what an engine cannot tell."""
    if teacher.engine == "vllm" and top_k is None:
        raise ValueError("teacher.engine vllm tells logprobs, not hidden states; set kl.top_k, e.g. 64")
    if teacher.engine == "vllm" and temperature != 1:
        raise ValueError("teacher.engine vllm tells logprobs at temperature 1; set temperature: 1")
    ignored = [name for name in ("tensor_parallel", "engine_args") if name in teacher.model_fields_set]
    if teacher.engine != "vllm" and ignored:
        raise ValueError(f"teacher.{ignored[0]} is for engine vllm, and would be ignored by transformers")
