"""The plan of a stage: what fits, how long each phase takes, what it costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.config import JUDGE_ROLES
from planning.assumptions import Assumptions
from planning.host_memory import host_note
from planning.machines import Machine, nodes_of_engine
from planning.memory import Memory, replica_completions
from planning.mesh import pipeline_efficiency
from planning.sampling_time import round_s
from planning.speed import mean_seen, pass_flops, rows_per_rank, step_flops
from planning.stage_memory import devices_used, in_place, running_slots, stage_memory
from planning.stage_workloads import workload
from planning.workload import DatasetSize, Reading, Request, Sampling, Training, Workload
from rollouts.config import GeneratorConfig

_IDLE_PIPELINE = 0.8  # share of an update in which ranks of a pipeline work; below it the plan says so
PHASES = ("prefill", "decode", "logprobs", "rewards", "update", "sync", "other")


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
        return all(memory.fits(self.room) for memory in self.moments.values())

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
    if said := host_note(work, machine):
        notes.append(said)
    return tuple(notes)


def _too_wide(generator: GeneratorConfig, machine: Machine) -> str:
    """Why an engine finds no place, if so."""
    ways, nodes = generator.tensor_parallel, nodes_of_engine(generator.tensor_parallel, machine)
    if not machine.cuda or ways <= machine.per_node * generator.nodes:
        return ""
    return f"an engine on {ways} devices is larger than a node of {machine.per_node}: set its nodes to {nodes}"


def _size(parameters: float) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M"
