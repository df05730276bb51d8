"""The plan of a stage: what fits, how long each phase takes, what it costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data.config import JUDGE_ROLES
from planning.assumptions import Assumptions
from planning.calibration import Calibration
from planning.devices import Cluster
from planning.memory import (
    Memory,
    generator_weights,
    replica_completions,
    resident,
    row_tokens,
    sampling_memory,
    slots_that_fit,
    training_memory,
)
from planning.mesh import pipeline_efficiency
from planning.sampling_time import round_s
from planning.speed import GpuSpeed, LocalSpeed, Speed, mean_seen, pass_flops, rows_per_rank, step_flops
from planning.stage_workloads import workload
from planning.workload import DatasetSize, Reading, Request, Sampling, Training, Workload
from rollouts.config import GeneratorConfig

_PASSING = ("activations", "logits")  # of memory, what comes and goes with every pass
_KEPT_BLOCK = 32 << 20  # bytes; glibc's largest M_MMAP_THRESHOLD
_IDLE_PIPELINE = 0.8  # share of an update in which ranks of a pipeline work; below it the plan says so
PHASES = ("prefill", "decode", "logprobs", "rewards", "update", "sync", "other")


class Machine(Protocol):
    """Where stages run."""

    @property
    def devices(self) -> int: ...  # accelerators, or 1 for a machine without
    @property
    def per_node(self) -> int: ...  # of them
    @property
    def room(self) -> float: ...  # bytes of one device that tensors may take
    @property
    def cuda(self) -> bool: ...
    @property
    def speed(self) -> Speed: ...
    @property
    def process_bytes(self) -> float: ...  # of a process before it holds a model
    @property
    def heap_factor(self) -> float: ...  # what passing tensors take, as a multiple of their size


@dataclass(frozen=True, slots=True)
class GpuMachine:
    cluster: Cluster
    assumed: Assumptions
    cuda: bool = True
    process_bytes: float = 0.0  # in host memory, which is not planned
    heap_factor: float = 1.0  # memory_share has it

    @property
    def devices(self) -> int:
        return self.cluster.devices

    @property
    def per_node(self) -> int:
        return self.cluster.per_node

    @property
    def room(self) -> float:
        return self.cluster.device.memory * self.assumed.memory_share

    @property
    def speed(self) -> Speed:
        return GpuSpeed(self.cluster, self.assumed)


@dataclass(frozen=True, slots=True)
class LocalMachine:
    """This machine as one device: processes share its cores and its memory."""

    calibration: Calibration
    cuda: bool = False
    devices: int = 1
    per_node: int = 1

    @property
    def process_bytes(self) -> float:
        return self.calibration.process_bytes

    @property
    def heap_factor(self) -> float:
        return self.calibration.heap_factor

    @property
    def room(self) -> float:
        return self.calibration.memory_bytes

    @property
    def speed(self) -> Speed:
        return LocalSpeed(self.calibration)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    name: str
    kind: str
    model: str = ""  # what is trained or sampled, with its size
    moments: Mapping[str, Memory] = field(default_factory=dict)  # "training", "sampling": memory of a device then
    room: float = 0.0  # bytes there are
    devices: int = 0  # used at the most
    flops: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)  # sampled, trained, read
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase, of the whole stage
    steps: float = 0.0  # optimizer steps
    leaves: DatasetSize | None = None
    notes: tuple[str, ...] = ()
    taken_for_granted: tuple[str, ...] = ()

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return all(memory.total <= self.room for memory in self.moments.values())

    @property
    def peak(self) -> Memory:
        return max(self.moments.values(), key=lambda memory: memory.total, default=Memory())

    @property
    def step_s(self) -> float:
        """Of one optimizer step, its share of sampling and all else included."""
        return self.total_s / self.steps if self.steps else 0.0


def plan_stage(request: Request, machine: Machine, assumed: Assumptions) -> StagePlan:
    work = workload(request, assumed)
    if not work.parts:
        return StagePlan(name=request.name, kind=request.kind, leaves=work.leaves, room=machine.room)
    work = in_place(work)
    seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    for part in work.parts:
        for phase, spent in _part_seconds(part, work, machine, assumed).items():
            seconds[phase] += spent
    if work.syncs and not work.in_trainer and work.generator is not None:
        seconds["sync"] += work.syncs * machine.speed.sync_s(work.parts[0].model, work.generator)
    seconds["other"] += work.syncs * assumed.offload_s
    main = next(iter(work.of(Training)), work.parts[0])
    return StagePlan(
        name=request.name,
        kind=request.kind,
        model=f"{main.model.name}, {_size(main.model.main_parameters)}",
        moments=stage_memory(work, machine, assumed),
        room=machine.room,
        devices=devices_used(work, machine),
        flops=sum(_part_flops(part, work) for part in work.parts),
        tokens=_tokens(work.parts),
        seconds={phase: spent for phase, spent in seconds.items() if spent},
        steps=sum(part.steps for part in work.of(Training)),
        leaves=work.leaves,
        notes=_notes(work, machine, assumed),
        taken_for_granted=work.taken_for_granted,
    )


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


# --- time ---


def _part_seconds(part: Any, work: Workload, machine: Machine, assumed: Assumptions) -> dict[str, float]:
    speed = machine.speed
    if isinstance(part, Sampling):
        slots = running_slots(part, work, machine, assumed)
        prefill, decode = round_s(part, speed, slots, replica_completions(part))
        if part.role in JUDGE_ROLES:
            return {"rewards": part.rounds * (prefill + decode)}
        return {"prefill": part.rounds * prefill, "decode": part.rounds * decode}
    if isinstance(part, Reading):
        trainer = work.trainer if part.by_trainer else None
        spent = speed.reading_s(
            part.model, part.sequences, part.prompt, part.lengths, part.predicts, trainer, machine.devices
        )
        return {"logprobs" if part.by_trainer or part.role.startswith("teacher") else "rewards": part.rounds * spent}
    assert work.trainer is not None and work.optimizer is not None
    return {"update": part.steps * speed.step_s(part, work.trainer, work.optimizer)}


def running_slots(part: Sampling, work: Workload, machine: Machine, assumed: Assumptions) -> float:
    """Completions that run at a time in a replica. Where not even one fits, memory is left out of the reckoning: the
    plan says that it does not fit, and its times are those of devices with enough."""
    room = machine.room - _beside(work, machine)
    room -= 0 if part.role in JUDGE_ROLES else _loaded_bytes(work, machine)
    if not part.in_trainer:
        room -= generator_weights(part.model, part.generator)
    fitting = slots_that_fit(part, room, split=assumed.split_latent_cache)
    return fitting if fitting >= 1 else min(part.generator.max_slots, replica_completions(part))


def _beside(work: Workload, machine: Machine) -> float:
    """Bytes that a trainer on the same devices keeps while others sample."""
    return sum(_trainer_at_rest(work).values()) if _shares_devices(work, machine) else 0.0


def _loaded_bytes(work: Workload, machine: Machine) -> float:
    """Of judges and reward models, on the device that has most of them, where there are not devices for all. They take
    those at which the fewest others look (cluster.gpus)."""
    sizes, taken = [one.bytes_per_device for one in work.loaded], sum(one.devices for one in work.loaded)
    if not machine.cuda:
        return sum(sizes)
    if taken + devices_used(work, machine) <= machine.devices:
        return 0.0
    return max(sizes, default=0.0) if taken <= machine.devices else sum(sizes)


def _trainer_at_rest(work: Workload) -> dict[str, float]:
    if work.trainer is None or work.optimizer is None or not work.of(Training):
        return {}
    training = work.of(Training)[0]
    parts = resident(training.model, work.trainer, work.optimizer, reference=work.reference, mtp=training.mtp)
    if work.optimizer.offload == "moments":
        parts.pop("moments")
    return parts


# --- memory and devices ---


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
    shared, rest = _shares_devices(work, machine), _trainer_at_rest(work)
    processes = {"processes": machine.process_bytes} if machine.process_bytes else {}
    loaded = _loaded_bytes(work, machine)
    others = {"judges and reward models": loaded} if loaded else {}
    for part in work.of(Sampling):
        slots = running_slots(part, work, machine, assumed)
        own = sampling_memory(part, slots, split=assumed.split_latent_cache)
        ours = not machine.cuda and not part.in_trainer  # replicas share the memory of the machine
        parts = {name: size * (part.generator.replicas if ours else 1) for name, size in own.parts.items()}
        if part.role not in JUDGE_ROLES:
            parts |= (rest if shared or part.in_trainer else {}) | others
        if part.in_trainer and not machine.cuda:
            parts |= _left_by_training(work, machine)
        _keep_larger(moments, "sampling", Memory(parts | processes))
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


# --- counts and remarks ---


def _part_flops(part: Any, work: Workload) -> float:
    if isinstance(part, Training):
        assert work.trainer is not None
        return part.steps * step_flops(part.model, part, work.trainer).total
    seen = mean_seen(part.prompt, part.lengths)
    if isinstance(part, Reading):
        predicted = part.rounds * part.sequences * part.lengths.mean if part.predicts else 0
        return pass_flops(part.model, part.tokens, seen, predicted).total
    prompts = part.rounds * part.completions / part.group * part.prompt
    return pass_flops(part.model, part.tokens + prompts, seen, part.tokens).total


def _tokens(parts: Iterable[Any]) -> dict[str, float]:
    names = {Sampling: "sampled", Reading: "read", Training: "trained"}
    counted: dict[str, float] = {}
    for part in parts:
        name = names[type(part)]
        counted[name] = counted.get(name, 0.0) + part.tokens
    return counted


def _notes(work: Workload, machine: Machine, assumed: Assumptions) -> tuple[str, ...]:
    notes = []
    used = devices_used(work, machine)
    if machine.cuda and used > machine.devices:
        notes.append(f"needs {used} devices, and the cluster has {machine.devices}")
    elif machine.cuda and used < machine.devices:
        notes.append(f"uses {used} of {machine.devices} devices")
    notes += sorted({note for part in work.of(Sampling) if (note := _too_wide(part.generator, machine))})
    for part in work.of(Sampling):
        if machine.cuda and part.role not in JUDGE_ROLES:
            wanted = min(part.generator.max_slots, replica_completions(part))
            slots = running_slots(part, work, machine, assumed)
            if slots < 0.95 * wanted:
                notes.append(f"{slots:.0f} of {wanted:.0f} completions fit a replica's cache at a time")
                break
    for part in work.of(Training):
        if work.trainer is not None and work.trainer.mesh.pipeline > 1:
            rows = rows_per_rank(part.sequences, part.prompt + part.lengths.mean, work.trainer)
            works = pipeline_efficiency(work.trainer.mesh, rows)
            if works < _IDLE_PIPELINE:
                notes.append(
                    f"ranks of the pipeline wait {1 - works:.0%} of an update: {rows:.1f} full rows per data rank"
                )
                break
    return tuple(notes)


def _too_wide(generator: GeneratorConfig, machine: Machine) -> str:
    """Why an engine finds no place, if so."""
    ways, nodes = generator.tensor_parallel, nodes_of_engine(generator.tensor_parallel, machine)
    if not machine.cuda or ways <= machine.per_node * generator.nodes:
        return ""
    return f"an engine on {ways} devices is larger than a node of {machine.per_node}: set its nodes to {nodes}"


def nodes_of_engine(ways: int, machine: Machine) -> int:
    """On how many nodes an engine on `ways` devices is, equally spread."""
    return next(nodes for nodes in range(1, ways + 1) if ways % nodes == 0 and ways <= nodes * machine.per_node)


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
