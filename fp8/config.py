"""What a recipe says about FP8. Free of torch, so that recipes load fast."""

from typing import Literal

from pydantic import BaseModel, Field

Backend = Literal["auto", "reference", "cublaslt", "deepgemm"]
Scales = Literal["float32", "power_of_two"]
AUDIT = "precision.json"  # in a stage's folder, and beside its checkpoint: fp8.convert.LayerPrecision of every layer


class Fp8Config(BaseModel, extra="forbid", frozen=True):
    """The FP8 stack of DeepSeek-V3 (arXiv:2412.19437, section 3.3)."""

    backend: Backend = Field(
        default="auto",
        description="who multiplies: auto is DeepGEMM, or else cuBLASLt, on Hopper GPUs, and the reference on CPUs; "
        "reference runs anywhere, in float32; deepgemm leaves weight gradients to cuBLASLt; cublaslt and deepgemm are "
        "errors where they cannot run (`r1 doctor` says why)",
    )
    scales: Scales = Field(
        default="float32",
        description="of activations, gradients and weights: float32 as V3, power_of_two as V3.1 and later (ue8m0)",
    )
    log_rounding_every: int = Field(
        default=0,
        ge=0,
        description="log every so many optimizer steps what E4M3 rounds away of activations and gradients (fp8/... in "
        "metrics.jsonl); costs some passes over them in that step. 0: never",
    )
    dispatch: bool = Field(
        default=False,
        description="expert parallel: tokens travel to their experts in FP8, and so do the gradients of what comes "
        "back (V3, section 3.3.3): half the bytes of bfloat16, but weight gradients are of tokens rounded twice",
    )
