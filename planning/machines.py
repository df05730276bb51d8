"""Where stages run, as a plan sees it: a cluster of GPUs, or this machine."""

from dataclasses import dataclass
from typing import Protocol

from planning.assumptions import Assumptions
from planning.calibration import Calibration
from planning.devices import Cluster
from planning.speed import GpuSpeed, LocalSpeed, Speed


class Machine(Protocol):
    """Where stages run."""

    @property
    def devices(self) -> int: ...  # accelerators, or 1 for a machine without
    @property
    def per_node(self) -> int: ...  # of them
    @property
    def memory(self) -> float: ...  # bytes of one device
    @property
    def room(self) -> float: ...  # those that tensors may take
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
    def memory(self) -> float:
        return self.cluster.device.memory

    @property
    def room(self) -> float:
        return self.memory * self.assumed.memory_share

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
    def memory(self) -> float:
        return self.calibration.memory_bytes

    @property
    def room(self) -> float:
        return self.memory

    @property
    def speed(self) -> Speed:
        return LocalSpeed(self.calibration)


def nodes_of_engine(ways: int, machine: Machine) -> int:
    """On how many nodes an engine on `ways` devices is, equally spread."""
    return next(nodes for nodes in range(1, ways + 1) if ways % nodes == 0 and ways <= nodes * machine.per_node)
