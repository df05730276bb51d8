"""How asynchronous RL scales: a stage's schedule simulated on more and more devices, beside ideal scaling.

Rates are the plan's (planning.speed); a rollout batch stays as large as the recipe says, so that the learning does.
With staleness the devices are divided between trainer and generators in the ratio of what each phase costs; without,
phases take turns on all of them, as R1's do (DeepSeek-R1, B.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planning.assumptions import Assumptions
from planning.devices import Cluster
from planning.machines import GpuMachine
from planning.memory import generator_weights, slots_that_fit
from planning.simulation import Outcome, Schedule, simulate
from planning.speed import GpuSpeed
from planning.stage_memory import in_place
from planning.stage_workloads import workload
from planning.workload import Reading, Request, Sampling, Training, Workload
from rollouts.config import GeneratorConfig
from training.config import TrainerConfig

DEVICES = (64, 128, 256, 512, 1024, 2048, 4096)
STALENESS = (0, 1, 2, 4)
# Unexpected interruptions per device and second: 419 in 54 days on 16,384 H100s (Llama 3, arXiv:2407.21783, 3.3.4).
FAILURES = 419 / (54 * 86_400 * 16_384)
RESTART_S = 600.0  # until a replica or the trainer is back: scheduling, loading 671B parameters, compiling. Ours
CHECKPOINT_S = 1800.0  # seconds of training between checkpoints, of which a failure of the trainer costs half. Ours
_BATCHES, _LONG = 12, 96  # rollout batches simulated, without and with failures


@dataclass(frozen=True, slots=True)
class ScalingPoint:
    devices: int
    staleness: int
    generators: int  # devices that sample
    tokens_per_s: float
    outcome: Outcome


class CannotScale(ValueError):
    """The stage has no schedule of sampling and training to simulate."""


def scaling(
    request: Request,
    cluster: Cluster,
    assumed: Assumptions,
    devices: Sequence[int] = DEVICES,
    staleness: Sequence[int] = STALENESS,
    failures: bool = False,
) -> list[ScalingPoint]:
    """A point for every bound and number of devices. With failures each is simulated for longer, since they are rare.

    Raises CannotScale for a stage that does not sample and train."""
    work = in_place(workload(request, assumed))
    if not work.of(Sampling) or not work.of(Training) or work.trainer is None:
        raise CannotScale(f"stage '{request.name}' ({request.kind}) does not sample what it trains on")
    return [_point(work, _sized(cluster, count), assumed, bound, failures) for bound in staleness for count in devices]


def _sized(cluster: Cluster, devices: int) -> Cluster:
    return Cluster(max(1, devices // cluster.per_node), min(devices, cluster.per_node), cluster.device)


def _point(work: Workload, cluster: Cluster, assumed: Assumptions, staleness: int, failures: bool) -> ScalingPoint:
    schedule, generators = schedule_on(work, cluster, assumed, staleness, _LONG if failures else _BATCHES)
    calm = replace(schedule, replica_failures=0.0, trainer_failures=0.0)
    outcome = simulate(schedule if failures else calm)
    return ScalingPoint(cluster.devices, staleness, generators, outcome.tokens_per_s, outcome)


def schedule_on(
    work: Workload, cluster: Cluster, assumed: Assumptions, staleness: int, batches: int
) -> tuple[Schedule, int]:
    """The schedule, and how many devices sample."""
    sampling, training = work.of(Sampling)[0], work.of(Training)[0]
    generator, ways = sampling.generator, sampling.generator.tensor_parallel
    devices = cluster.devices
    cost = _training_device_s(work, cluster, assumed)
    if staleness == 0:
        generators = trainers = devices
    else:
        share = _sampling_share(work, cluster, assumed, cost)
        generators = min(devices - 1, max(ways, round(devices * share / ways) * ways))
        trainers = max(1, devices - generators)
    replicas = max(1, generators // ways)
    slots, token_s = _replica(work, sampling, cluster, assumed, replicas, staleness)
    steps = training.steps / sampling.rounds
    used = min(trainers, training.sequences * work.trainer.mesh.pipeline) if work.trainer else trainers
    train_s = cost / used + steps * assumed.step_overhead_s
    schedule = Schedule(
        replicas=replicas,
        slots=slots,
        token_s=token_s,
        lengths=sampling.lengths,
        batch=round(sampling.completions),
        train_s=train_s,
        sync_s=GpuSpeed(cluster, assumed).sync_s(sampling.model, replace_replicas(generator, replicas)),
        staleness=staleness,
        batches=batches,
        replica_failures=FAILURES * ways,
        trainer_failures=FAILURES * trainers,
        restart_s=RESTART_S,
        checkpoint_every=max(1, round(CHECKPOINT_S / train_s)),
    )
    return schedule, generators


def replace_replicas(generator: GeneratorConfig, replicas: int) -> GeneratorConfig:
    return generator.model_copy(update={"replicas": replicas})


def _training_device_s(work: Workload, cluster: Cluster, assumed: Assumptions) -> float:
    """Device-seconds of a rollout batch in the trainer: logprobs and updates, without the waits of a pipeline, whose
    shape on other numbers of devices the recipe does not say."""
    speed = GpuSpeed(cluster, replace_overhead(assumed))
    assert work.trainer is not None and work.optimizer is not None
    mesh = work.trainer.mesh.model_copy(update={"data": 1, "expert": 1, "pipeline": 1})
    alone: TrainerConfig = work.trainer.model_copy(update={"mesh": mesh})
    rounds = sum(part.rounds for part in work.of(Sampling))
    updates = sum(part.steps * speed.step_s(part, alone, work.optimizer) for part in work.of(Training))
    readings = sum(
        part.rounds * speed.reading_s(part.model, part.sequences, part.prompt, part.lengths, part.predicts, alone, 1)
        for part in work.of(Reading)
        if part.by_trainer
    )
    return (updates + readings) / rounds


def replace_overhead(assumed: Assumptions) -> Assumptions:
    return assumed.model_copy(update={"step_overhead_s": 0.0})


def _replica(
    work: Workload, sampling: Sampling, cluster: Cluster, assumed: Assumptions, replicas: int, staleness: int
) -> tuple[int, float]:
    """(slots, seconds per token) of a replica with its share of the completions that may run."""
    machine = GpuMachine(cluster, assumed)
    one = replace(sampling, generator=replace_replicas(sampling.generator, replicas))
    room = machine.room - generator_weights(sampling.model, sampling.generator)
    wanted = min(sampling.generator.max_slots, sampling.completions * (staleness + 1) / replicas)
    fitting = slots_that_fit(one, room, split=assumed.split_latent_cache)
    slots = max(1, int(min(wanted, fitting) if fitting >= 1 else wanted))
    seen = sampling.prompt + sampling.lengths.mean_square / (2 * sampling.lengths.mean)
    running = min(slots, max(1.0, wanted))
    speed = GpuSpeed(cluster, assumed)
    return slots, speed.decode_s(sampling.model, running, seen, sampling.generator, False)


def _sampling_share(work: Workload, cluster: Cluster, assumed: Assumptions, training: float) -> float:
    """Of the device-seconds of a rollout batch, those that sampling takes with full replicas."""
    sampling = work.of(Sampling)[0]
    slots, token_s = _replica(work, sampling, cluster, assumed, 1, 0)
    spent = sampling.completions * sampling.lengths.mean / slots * token_s * sampling.generator.tensor_parallel
    return spent / (spent + training)
