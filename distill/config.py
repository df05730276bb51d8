"""Settings of distillation. Free of torch, so that recipes load fast."""

from pydantic import Field

from data.chat import Template
from training.config import OptimizerConfig, TrainingConfig


class DistillConfig(TrainingConfig, extra="forbid", frozen=True):
    """SFT of a dense student on the curated set, no RL (DeepSeek-R1, arXiv:2501.12948v2, B.4.3)."""

    template: Template = Field(default="chat", description="how prompts are rendered, by the student's own tokenizer")
    epochs: int = Field(default=2, ge=1, description="passes over the data; 2-3 in the paper (B.4.3)")
    batch_size: int = Field(default=64, ge=1, description="samples per optimizer step; 64 in the paper (B.4.3)")
    optimizer: OptimizerConfig = Field(
        default=OptimizerConfig(lr=1e-4, schedule="cosine"),
        description="cosine to 10 %; lr by student (Table 6): Qwen 1.5B 1e-4, 7B 8e-5, 14B 7e-5, 32B 6e-5, "
        "Llama 8B 5e-5, 70B 2e-5; tiny models need ~1e-3",
    )
