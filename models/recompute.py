"""Activations that are computed again in the backward pass instead of being kept.

`blocks`: of each decoder layer only the input is kept. `norms_and_up_projections`: of each decoder layer the results of
matrix products and of attention are kept, but not those of MLA's up-projections; so RMSNorms, up-projections, rotary
embeddings and activation functions run again, which is what DeepSeek-V3 does (arXiv:2412.19437, section 3.2.3).

Gradients are those of keeping everything. Only training mode recomputes: a generator that shares the model does not.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from fp8.gemm import OPERATORS as FP8_PRODUCTS

Recompute = Literal["none", "norms_and_up_projections", "blocks"]
_UP_PROJECTIONS = ("q_b_proj", "kv_b_proj")

_aten = torch.ops.aten
_KEPT = {  # matrix products, and attention, whose forward pass costs as much as they do
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten._grouped_mm.default, *FP8_PRODUCTS,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._efficient_attention_forward.default,
}  # fmt: skip


class _Thread(threading.local):
    recomputing = False
    in_up_projection = False


_thread = _Thread()  # backward passes on GPUs have threads of their own


def recomputing() -> bool:
    """Whether this thread is computing activations again: what hooks count or note was counted before."""
    return _thread.recomputing


def set_recompute(model: nn.Module, policy: Recompute) -> None:
    """Let the decoder layers inside `model` recompute by `policy` from now on, or keep everything ("none")."""
    contexts = _selective_contexts if policy == "norms_and_up_projections" else _contexts
    # Neither dropout nor anything else in a layer draws random numbers.
    again: Any = partial(checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.gradient_checkpointing = policy != "none"
            layer._gradient_checkpointing_func = again
            if policy == "norms_and_up_projections":
                _watch_up_projections(layer)


def _watch_up_projections(layer: nn.Module) -> None:
    for name, module in layer.named_modules():
        if name.rpartition(".")[2] in _UP_PROJECTIONS and _enter not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_enter)
            module.register_forward_hook(_leave)


def _enter(module: nn.Module, args: Any) -> None:
    _thread.in_up_projection = True


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    _thread.in_up_projection = False


@contextmanager
def _recomputing(*contexts: Any) -> Iterator[None]:
    before, _thread.recomputing = _thread.recomputing, True
    try:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            yield
    finally:
        _thread.recomputing = before
        _thread.in_up_projection = False  # checkpoint stops a layer early, once it has what backward needs


def _contexts() -> tuple[Any, Any]:
    return ExitStack(), _recomputing()


def _selective_contexts() -> tuple[Any, Any]:
    forward, again = create_selective_checkpoint_contexts(_policy)
    return forward, _recomputing(again)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = op in _KEPT and not _thread.in_up_projection
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
