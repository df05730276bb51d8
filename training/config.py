"""Settings that every training stage shares."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.config import OPERATIONAL
from fp8.config import Fp8Config
from training.mesh import MeshConfig


class OptimizerConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """AdamW, or Muon beside it. R1 does not state betas, decay or clipping of RL and SFT: these are V3's (4.2)."""

    algorithm: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw for all weights, as R1 and V3; muon: for hidden matrices of two dimensions, with adamw for "
        "embeddings, head, routers, norms and fused experts",
    )

    lr: float = Field(
        default=3e-6, gt=0, description="peak learning rate; 3e-6 is the paper's for RL, tiny models need ~1e-4"
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="constant (RL) or cosine down to final_lr_share (SFT, as the paper)"
    )
    final_lr_share: float = Field(
        default=0.1, ge=0, le=1, description="share of lr at the end of a cosine; 0.1 is the paper's"
    )
    warmup_steps: int = Field(default=0, ge=0, description="optimizer steps of linear warm-up; not stated in the paper")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment; V3's")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="decay of the second moment; V3's")
    weight_decay: float = Field(
        default=0.0, ge=0, description="decoupled decay of matrices; 0 because fine-tuning is short"
    )
    clip_norm: float = Field(default=1.0, gt=0, description="largest global gradient norm; V3's")
    muon_lr_factor: float = Field(
        default=1.0,
        gt=0,
        description="muon: its learning rate as a multiple of lr; 1 because its updates are scaled to the size that "
        "AdamW's have (Moonlight, arXiv:2502.16982)",
    )
    moments: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="how AdamW's moments are stored. bfloat16 saves 4 bytes per parameter, as V3 (section 3.3.2), and "
        "needs beta2 <= 0.996; float32 because small models have the memory and need no second source of rounding",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of an average of the weights in CPU memory (V3, section 3.2.3, which does not state it); "
        "0: none, as it takes 4 to 8 bytes per parameter, over all ranks",
    )
    offload: Annotated[Literal["none", "moments", "all"], OPERATIONAL] = Field(
        default="none",
        description="what goes to host memory while generators sample on the same devices: nothing, the optimizer's "
        "moments, or all: these, the weights and the reference policy",
    )

    @model_validator(mode="after")
    def _moments_can_move(self) -> Self:
        if self.moments == "bfloat16" and max(self.beta1, self.beta2) > 0.996:
            raise ValueError(
                "optimizer: with moments in bfloat16 a beta above 0.996 changes them by less than half a unit in the "
                "last place per step, so they would stand still; lower it or set moments: float32"
            )
        return self

    @model_validator(mode="after")
    def _muon_is_there(self) -> Self:
        if self.algorithm != "muon" and self.muon_lr_factor != 1:
            raise ValueError(
                f"optimizer: muon_lr_factor {self.muon_lr_factor:g} would be ignored by {self.algorithm}; set "
                "algorithm: muon, or leave it out"
            )
        return self

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of optimizer step `step` (0-based) of `total_steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.final_lr_share + (1 - self.final_lr_share) * cosine)


class LoRAConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """Adapters that are trained in place of the weights (LoRA, Hu et al., arXiv:2106.09685): W + alpha / rank * B A.

    Defaults follow "LoRA Without Regret" (Schulman et al., Thinking Machines, 2025). Its other advice is about
    `optimizer.lr`: ten times that of training all weights. There is no dropout: old logprobs would then be those of
    another policy than the one that sampled.
    """

    rank: int = Field(
        default=16,
        ge=1,
        description="rows of A, columns of B: how much can be learned. A few are as good as all weights for RL, and "
        "large SFT sets need more; 16, between the two, is ours",
    )
    alpha: int = Field(
        default=32, ge=1, description="the update is alpha / rank * B A; with 32 at any rank, one lr serves all ranks"
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear",
        min_length=1,
        description="linear layers that get an adapter, by the last part of their names, as [q_proj, v_proj]; "
        "all-linear: all of the decoder layers, as attention alone learns less. Where layers have routed experts "
        "these are attention's, since peft takes gate_proj, up_proj and down_proj there for the experts. Never "
        "experts, routers, indexers, embedding, head and MTP layer",
    )


class TrainerConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The process that trains."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU when there is one")
    mesh: Annotated[MeshConfig, OPERATIONAL] = Field(
        default=MeshConfig(),
        description="how many processes train, and what each holds; one, unless a model needs more. Another mesh "
        "rounds otherwise, so a step agrees to about 1e-5, not bit for bit",
    )
    precision: Literal["float32", "bfloat16", "fp8"] = Field(
        default="float32",
        description="what is multiplied in; weights, gradients and moments stay float32. bfloat16: half the memory of "
        "activations and gathered weights, and tensor cores. fp8: linear layers and experts as DeepSeek-V3, the rest "
        "in bfloat16 on GPUs and float32 on CPUs; fast on Hopper alone. float32 is right for tiny models on CPUs",
    )
    fp8: Fp8Config = Field(default=Fp8Config(), description="how it is done where precision is fp8")
    lora: LoRAConfig | None = Field(
        default=None,
        description="train adapters and leave the weights at rest: gradients and optimizer state are those of the "
        "adapters alone. The result is a checkpoint with them merged, and beside it `adapter` for peft; none trains "
        "all weights, as R1",
    )
    threads: int = Field(default=2, ge=1, description="compute threads on CPU; part of what makes a run reproducible")
    row_tokens: int = Field(
        default=4096,
        ge=64,
        description="tokens of a packed row: one forward pass; bounded by memory. Longer sequences get their own row",
    )
    drop_mtp: bool = Field(
        default=False,
        description="leave the MTP layer behind: it is not loaded, and checkpoints say num_nextn_predict_layers 0; "
        "false keeps it, since engines draft with it",
    )
    recompute: Literal["none", "norms_and_up_projections", "blocks"] = Field(
        default="none",
        description="activations computed again in backward instead of kept: none (fastest); norms_and_up_projections "
        "keeps only the results of matrix products and attention, as V3 (section 3.2.3); blocks keeps only the input "
        "of each layer: least memory, a second forward pass. The results are the same to the bit",
    )
    checkpoint_every: Annotated[int, OPERATIONAL] = Field(
        default=50, ge=1, description="optimizer steps between checkpoints; what a kill can cost"
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=1800.0, gt=0, description="seconds one call to the trainer may take before the run stops"
    )

    @model_validator(mode="after")
    def _fp8_is_used(self) -> Self:
        if self.fp8 != Fp8Config() and self.precision != "fp8":
            raise ValueError(f"trainer: fp8 is set while precision is {self.precision}, so it would be ignored")
        if self.fp8.dispatch and self.mesh.expert == 1:
            raise ValueError("trainer: fp8.dispatch is about tokens that travel, and with mesh.expert 1 none does")
        return self

    @model_validator(mode="after")
    def _adapters_are_there(self) -> Self:
        if self.lora is not None and self.precision == "fp8":
            raise ValueError("lora is not there with precision fp8; set precision to bfloat16 or float32")
        if self.lora is not None and self.mesh.pipeline > 1:
            raise ValueError("lora is not there in a pipeline; set mesh.pipeline to 1")
        return self


class TrainingConfig(BaseModel, extra="forbid", frozen=True):
    """What every stage that trains a policy has; stages set defaults of their own."""

    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="learning rate, schedule, moments")
    trainer: TrainerConfig = Field(default=TrainerConfig(), description="the training process")

    @model_validator(mode="after")
    def _mtp_layer_is_there(self) -> Self:
        if self.trainer.drop_mtp and "mtp_weight" in self.model_fields_set and getattr(self, "mtp_weight", 0):
            raise ValueError("mtp_weight is set while trainer.drop_mtp leaves no layer to train; drop one of the two")
        return self

    @model_validator(mode="after")
    def _what_lora_trains_is_adapters(self) -> Self:
        """A default weight is nobody's wish; it is taken for 0."""
        if self.trainer.lora is not None and self.optimizer.algorithm == "muon":
            raise ValueError(
                "optimizer: muon is made for whole weights, and trainer.lora trains their factors; set algorithm: adamw"
            )
        moved = [key for key in ("mtp_weight", "bias_speed") if key in self.model_fields_set and getattr(self, key, 0)]
        if self.trainer.lora is not None and moved:
            raise ValueError(
                f"{moved[0]} is set while trainer.lora leaves all but its adapters at rest; set {moved[0]} to 0, or "
                "train without lora"
            )
        return self
