"""What trainers and sleeping engines keep in the memory of a GPU node's host, when most is kept."""

from planning.devices import GIB
from planning.machines import Machine
from planning.memory import Memory, generator_weights, resident
from planning.workload import Training, Workload

_WORTH_SAYING = 64 * GIB  # per node; less than any node with GPUs has


def host_memory(work: Workload, machine: Machine) -> Memory:
    """Of one node. Nothing for a machine whose devices are its host, and for stages that do not train."""
    if not machine.cuda or work.trainer is None or work.optimizer is None or not work.of(Training):
        return Memory()
    training, ranks = work.of(Training)[0], min(machine.per_node, work.trainer.mesh.ranks)
    settings = {"reference": work.reference, "mtp": training.mtp}
    held = resident(training.model, work.trainer, work.optimizer, cuda=False, **settings)
    average = held.pop("average", 0.0)  # with the copy that it takes
    parts = {"checkpoint copy": sum(held.values()) + average / 2, "average": average}
    away = {"none": 0.0, "moments": held["moments"], "all": sum(held.values())}
    parts["offloaded"] = away[work.optimizer.offload] if work.syncs else 0.0
    parts = {name: ranks * size for name, size in parts.items()}
    if (generator := work.generator) is not None and generator.sleep and not work.in_trainer:
        engines = min(machine.per_node, generator.replicas * generator.tensor_parallel)
        parts["sleeping engines"] = engines * generator_weights(training.model, generator)
    return Memory({name: size for name, size in parts.items() if size})


def host_note(work: Workload, machine: Machine) -> str:
    memory = host_memory(work, machine)
    return f"host memory of a node: {memory}" if memory.total >= _WORTH_SAYING else ""
