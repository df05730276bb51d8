"""What a device of a stage holds when most is needed, beside whom, and how many devices a stage takes."""

from dataclasses import replace
from typing import Any

from data.config import JUDGE_ROLES
from planning.assumptions import Assumptions
from planning.machines import Machine
from planning.memory import (
    Memory,
    engine_share,
    generator_weights,
    replica_completions,
    resident,
    row_tokens,
    sampling_memory,
    slots_that_fit,
    training_memory,
)
from planning.workload import Sampling, Training, Workload

_PASSING = ("activations", "logits")  # of memory, what comes and goes with every pass
_KEPT_BLOCK = 32 << 20  # bytes; glibc's largest M_MMAP_THRESHOLD


def _generator_devices(work: Workload) -> int:
    if work.in_trainer or work.generator is None:
        return 0
    return work.generator.replicas * work.generator.tensor_parallel


def _shares_devices(work: Workload, machine: Machine) -> bool:
    """Whether trainer and generators are on the same devices: there are not enough for both."""
    if work.trainer is None:
        return False
    return not machine.cuda or work.trainer.mesh.ranks + _generator_devices(work) > machine.devices


def devices_used(work: Workload, machine: Machine) -> int:
    ranks = work.trainer.mesh.ranks if work.trainer is not None and work.of(Training) else 0
    if not machine.cuda:
        return 1
    if not ranks and not _generator_devices(work):
        return machine.devices  # readings alone
    return max(ranks, _generator_devices(work)) if _shares_devices(work, machine) else ranks + _generator_devices(work)


def stage_memory(work: Workload, machine: Machine, assumed: Assumptions) -> dict[str, Memory]:
    """What a device holds when most is needed, by what is going on there."""
    moments: dict[str, Memory] = {}
    shared, rest = _shares_devices(work, machine), _trainer_at_rest(work, machine)
    processes = {"processes": machine.process_bytes} if machine.process_bytes else {}
    loaded = _loaded_bytes(work, machine)
    others = {"judges and reward models": loaded} if loaded else {}
    for part in work.of(Sampling):
        slots = running_slots(part, work, machine, assumed)
        own = sampling_memory(part, slots, split=assumed.split_latent_cache)
        ours = not machine.cuda and not part.in_trainer  # replicas share the memory of the machine
        parts = {name: size * (part.generator.replicas if ours else 1) for name, size in own.parts.items()}
        if (unused := _engine_bytes(part, machine) - own.total) > 0:
            parts["kept by the engine"] = unused
        if part.role not in JUDGE_ROLES:
            parts |= (rest if shared or part.in_trainer else {}) | others
        if part.in_trainer and not machine.cuda:
            parts |= _left_by_training(work, machine)
        _keep_larger(moments, "sampling", Memory(parts | processes))
    if sent := _sync_bytes(work, machine):
        sampling = work.of(Sampling)[0]
        engine = generator_weights(sampling.model, sampling.generator)
        if not sampling.generator.sleep:  # else its cache is not there yet
            engine = max(_engine_bytes(sampling, machine), engine)
        sending = _trainer_at_rest(work, machine, syncing=True)
        moments["weight sync"] = Memory(sending | others | {"engine": engine, "gathered": sent})
    for part in work.of(Training):
        assert work.trainer is not None and work.optimizer is not None
        own = training_memory(
            part.model, work.trainer, work.optimizer, part, reference=work.reference, cuda=machine.cuda
        )
        parts = {**own.parts, **processes, **others}
        parts |= {name: parts[name] * machine.heap_factor for name in _PASSING if name in parts}
        generator = work.generator
        if shared and generator is not None and not work.in_trainer and not generator.sleep:
            awake = generator_weights(part.model, generator) * (1 if machine.cuda else generator.replicas)
            parts["generator weights"] = awake
        _keep_larger(moments, "training", Memory(parts))
    return moments


def _left_by_training(work: Workload, machine: Machine) -> dict[str, float]:
    """On CPUs glibc's allocator keeps freed blocks of less than 32 MiB for the process, which samples beside them."""
    assert work.trainer is not None and work.optimizer is not None
    left = 0.0
    for part in work.of(Training):
        widest = max(part.model.dense_ffn, part.model.top_k * part.model.width, part.model.heads * part.model.qk_dim)
        if 4 * widest * row_tokens(work.trainer, part) < _KEPT_BLOCK:
            own = training_memory(part.model, work.trainer, work.optimizer, part, reference=False, cuda=False)
            left = max(left, sum(own.parts.get(name, 0.0) for name in _PASSING))
    return {"left by training": left * machine.heap_factor} if left else {}


def _keep_larger(moments: dict[str, Memory], name: str, memory: Memory) -> None:
    if name not in moments or memory.total > moments[name].total:
        moments[name] = memory


def running_slots(part: Sampling, work: Workload, machine: Machine, assumed: Assumptions) -> float:
    """Completions that run at a time in a replica. Where not even one fits, memory is left out of the reckoning: the
    plan says that it does not fit, and its times are those of devices with enough."""
    room = machine.room - _beside(work, machine)
    room -= 0 if part.role in JUDGE_ROLES else _loaded_bytes(work, machine)
    if kept := _engine_bytes(part, machine):
        room = min(room, kept)
    if not part.in_trainer:
        room -= generator_weights(part.model, part.generator)
    fitting = slots_that_fit(part, room, split=assumed.split_latent_cache)
    return fitting if fitting >= 1 else min(part.generator.max_slots, replica_completions(part))


def share_left(work: Workload, machine: Machine) -> float:
    """Share of a device's memory, in whole hundredths, that trainer and reward models leave to the engines that sample
    and judge there."""
    rewards = replace(work, loaded=tuple(one for one in work.loaded if one.role not in JUDGE_ROLES))
    loaded, taken = _loaded_bytes(rewards, machine), _beside(work, machine)
    if _shares_devices(work, machine) and work.generator is not None and not work.generator.sleep:
        # With sleep, there is no cache yet when weights are sent.
        sending = sum(_trainer_at_rest(work, machine, syncing=True).values()) + _sync_bytes(work, machine)
        taken = max(taken, sending)
    left = machine.room - loaded - taken
    return int(100 * left / machine.memory) / 100


def _sync_bytes(work: Workload, machine: Machine) -> float:
    """What a sharded trainer holds while it sends weights to engines on its own devices: the largest weight in one
    piece, of split experts those of one rank beside its own (training.trainer.Trainer.weights)."""
    if not (machine.cuda and work.syncs and work.trainer and not work.in_trainer and _shares_devices(work, machine)):
        return 0.0
    mesh, model = work.trainer.mesh, work.of(Training)[0].model
    fused = 2 * model.width * model.expert_ffn * model.experts / mesh.expert * (2 if mesh.expert > 1 else 1)
    return 4 * max(fused, model.embedding_parameters) if mesh.ranks > 1 else 0.0


def _engine_bytes(part: Sampling, machine: Machine) -> float:
    """What the engine of a sampling takes of a device, whatever it needs."""
    return 0.0 if part.in_trainer or not machine.cuda else engine_share(part.generator) * machine.memory


def _beside(work: Workload, machine: Machine) -> float:
    """Bytes that a trainer on the same devices keeps while others sample."""
    return sum(_trainer_at_rest(work, machine).values()) if _shares_devices(work, machine) else 0.0


def _loaded_bytes(work: Workload, machine: Machine) -> float:
    """Of judges and reward models, on the device that has most of them, where there are not devices for all. They take
    those at which the fewest others look (cluster.gpus)."""
    if not machine.cuda:
        return sum(one.weights for one in work.loaded)
    sizes = [max(one.weights, one.share * machine.memory) for one in work.loaded]
    taken = sum(one.devices for one in work.loaded)
    if taken + devices_used(work, machine) <= machine.devices:
        return 0.0
    return max(sizes, default=0.0) if taken <= machine.devices else sum(sizes)


def _trainer_at_rest(work: Workload, machine: Machine, syncing: bool = False) -> dict[str, float]:
    """What a trainer keeps while engines sample, or are sent its weights (training.trainer.Trainer.offload)."""
    if work.trainer is None or work.optimizer is None or not work.of(Training):
        return {}
    training = work.of(Training)[0]
    parts = resident(
        training.model, work.trainer, work.optimizer, reference=work.reference, mtp=training.mtp, cuda=machine.cuda
    )
    away = {"none": (), "moments": ("moments",), "all": ("moments", "reference")}[work.optimizer.offload]
    away = (*away, "weights") if work.optimizer.offload == "all" and not syncing and not work.in_trainer else away
    return {name: size for name, size in parts.items() if name not in away}


def in_place(work: Workload) -> Workload:
    """Sampling in the trainer runs on the trainer's threads: as one replica with as many."""
    if not work.in_trainer or work.trainer is None:
        return work
    threads = work.trainer.threads
    parts: list[Any] = []
    for part in work.parts:
        if isinstance(part, Sampling) and part.in_trainer:
            alone = part.generator.model_copy(update={"replicas": 1, "threads": threads})
            part = replace(part, generator=alone)
        parts.append(part)
    return replace(work, parts=parts)
