"""Shapes of the models that are trained from scratch. Free of torch, so that recipes load fast."""

from typing import Literal

from pydantic import BaseModel, Field


class TinyModelConfig(BaseModel, extra="forbid", frozen=True):
    """Shape of a model trained from scratch."""

    architecture: Literal["deepseek_v3", "llama"] = Field(
        default="deepseek_v3",
        description="deepseek_v3 = MLA + MoE + MTP, the paper's architecture; llama = a dense student",
    )
    vocab_size: int = Field(default=1024, ge=300, le=8192, description="tokens; our text needs no more")
    hidden_size: int = Field(default=192, ge=64, description="model width")
    num_layers: int = Field(default=4, ge=2, description="decoder layers; the first is dense, the others MoE")
    num_heads: int = Field(default=4, ge=1, description="attention heads")
    intermediate_size: int = Field(default=512, ge=64, description="width of dense feed-forward layers")
    expert_size: int = Field(default=96, ge=16, description="width of one expert")
    num_experts: int = Field(default=8, ge=4, description="routed experts, in 4 groups of which 2 are kept")
    experts_per_token: int = Field(default=2, ge=1, description="routed experts per token")
    tie_embeddings: bool = Field(
        default=False, description="share input and output embeddings; V3 does not, students may"
    )
    max_length: int = Field(default=512, ge=64, description="longest sequence, tokens")
