"""vLLM's engine as every actor here opens it: which arguments are whose, and what goes for each device."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from cluster.placement import Spread
from models.checkpoint import resolve_device
from rollouts import vllm_cpu
from rollouts.vllm_nodes import joined, prepare_environment

PARCELS = "r1_parcels"  # our backend of vLLM's weight transfer (rollouts.vllm_weights)
# What no recipe may set among engine_args, and what it follows.
_SETTLED = {
    "model": "the stage's checkpoint",
    "dtype": "{}dtype",
    "tensor_parallel_size": "{}tensor_parallel",
    "pipeline_parallel_size": "{0}tensor_parallel and {0}nodes",
    "prefill_context_parallel_size": "{0}tensor_parallel and {0}nodes",
    "enable_expert_parallel": "{}expert_parallel",
    "distributed_executor_backend": "{}tensor_parallel",
    "nnodes": "{}nodes",
    "node_rank": "{}nodes",
    "master_addr": "{}nodes",
    "master_port": "{}nodes",
}


def open_engine(
    checkpoint: str,
    ours: Mapping[str, Any],
    *,
    key: str,
    settled: Mapping[str, str],
    device: str = "auto",
    dtype: str = "float32",
    tensor_parallel: int = 1,
    expert_parallel: bool = False,
    engine_args: Mapping[str, Any] | None = None,
    spread: Spread | None = None,
) -> Any:
    """vllm.LLM on the checkpoint, told `ours` and the recipe's `engine_args`.

    key: where the recipe has engine_args. settled: names that it may not set there, and what each follows.

    Raises ValueError for an argument that vLLM does not have or that is settled, or, on CPU, a model that vLLM does not
    host there; RuntimeError on CPU with a vLLM that was not checked there; MemberLost.
    """
    on_cpu, given = resolve_device(device).type == "cpu", dict(engine_args or {})
    prepare_environment(on_cpu, given)
    from rollouts.vllm_weights import register

    register()
    import vllm

    config = AutoConfig.from_pretrained(checkpoint)
    _check_names(given, key, {name: follows.format(key) for name, follows in _SETTLED.items()} | dict(settled))
    if given.get("speculative_config") or given.get("spec_method"):
        why = vllm_cpu.NO_DRAFTING if on_cpu else "a draft model gets no weights in a sync yet; leave it out"
        raise ValueError(f"{key}engine_args.speculative_config: {why}")
    arguments: dict[str, Any] = {**ours, **given}
    if on_cpu:
        if expert_parallel:
            raise ValueError(f"{key}expert_parallel needs GPUs; on CPU take more replicas")
        arguments |= _for_cpu(given, config, key)
    arguments |= {
        "model": checkpoint,
        "dtype": dtype,
        "tensor_parallel_size": tensor_parallel,
        "enable_expert_parallel": expert_parallel,
    }
    if tensor_parallel > 1:  # in an actor with a bundle vLLM would ask Ray for more, of one GPU each
        arguments["distributed_executor_backend"] = "mp"
    with joined(spread, arguments, device) as arguments:
        return vllm.LLM(**arguments)


def _check_names(given: Mapping[str, Any], key: str, settled: Mapping[str, str]) -> None:
    import vllm
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in given:
        if name in settled:
            raise ValueError(f"{key}engine_args.{name} is not yours to set: it follows {settled[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{key}engine_args.{name}: vLLM {vllm.__version__} has no such argument{hint}")


def _for_cpu(given: Mapping[str, Any], config: Any, key: str) -> dict[str, Any]:
    import vllm

    vllm_cpu.check_version(vllm.__version__)
    needed = vllm_cpu.engine_arguments(given.get("max_model_len") or config.max_position_embeddings)
    if taken := sorted(given.keys() & needed.keys()):
        raise ValueError(
            f"{key}engine_args.{taken[0]} is not yours to set on CPU: rollouts.vllm_cpu sets it to go round an "
            "error of vLLM's"
        )
    vllm_cpu.check_architecture(config)
    return needed
