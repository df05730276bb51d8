"""Devices and clusters: peak rates from data sheets, and how they are written on the command line."""

import re
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "fp8"]
GIB = 1 << 30


class UnknownCluster(ValueError):
    """A cluster that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Peaks of one device. FLOP/s are dense, without sparsity; 0: it has no such units and computes in the next wider
    precision."""

    name: str
    float32: float  # FLOP/s, as torch multiplies by default, without TF32
    bfloat16: float  # FLOP/s
    fp8: float  # FLOP/s
    memory: float  # bytes, as the driver reports them
    bandwidth: float  # bytes/s of its memory
    link: float  # bytes/s one way between devices of a node
    network: float  # bytes/s one way per device between nodes

    def peak(self, precision: Precision) -> float:
        """FLOP/s of matrix products with these operands."""
        rates = {"fp8": self.fp8 or self.bfloat16, "bfloat16": self.bfloat16 or self.float32, "float32": self.float32}
        return rates[precision]


# NVIDIA's data sheets (H100 and H200 Tensor Core GPU, A100 80GB SXM, Ada architecture white paper for the RTX 4090).
# They print FLOP/s with sparsity, twice these. Network: one 400 Gb/s adapter per H device (DGX H100), 200 Gb/s for A100
# (DGX A100), 100 Gb/s for a server of RTX 4090s, which is ours. H800: the H100 with fewer links; NVLink 160 and
# InfiniBand 50 GB/s are DeepSeek-V3's figures (arXiv:2412.19437, section 3.2.2).
_H100 = {"float32": 67e12, "bfloat16": 989e12, "fp8": 1979e12}
DEVICES = {
    device.name.lower(): device
    for device in (
        Device(name="H800", **_H100, memory=79.6 * GIB, bandwidth=3.35e12, link=160e9, network=50e9),
        Device(name="H100", **_H100, memory=79.6 * GIB, bandwidth=3.35e12, link=450e9, network=50e9),
        Device(name="H200", **_H100, memory=139.8 * GIB, bandwidth=4.8e12, link=450e9, network=50e9),
        Device(
            name="A100", float32=19.5e12, bfloat16=312e12, fp8=0, memory=79.3 * GIB, bandwidth=2.04e12, link=300e9,
            network=25e9,
        ),
        Device(
            name="RTX4090", float32=82.6e12, bfloat16=165e12, fp8=330e12, memory=23.5 * GIB, bandwidth=1.01e12,
            link=32e9, network=12.5e9,
        ),
    )
}  # fmt: skip
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes` machines of `per_node` devices each."""

    nodes: int
    per_node: int
    device: Device

    @property
    def devices(self) -> int:
        return self.nodes * self.per_node

    def slowest_link(self, devices: int) -> float:
        """bytes/s one way between `devices` of them: the network's as soon as they are on several nodes."""
        return self.device.link if devices <= self.per_node else self.device.network

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}x{self.device.name}"


def parse_cluster(text: str) -> Cluster:
    """64x8xH800, 8xH100 or H200. Raises UnknownCluster."""
    match = re.fullmatch(r"(?:(\d+)x)?(?:(\d+)x)?([A-Za-z][A-Za-z0-9 _-]*)", text.strip())
    name = re.sub(r"[ _-]", "", match[3]).lower() if match else ""
    if match is None or name not in DEVICES:
        known = ", ".join(device.name for device in DEVICES.values())
        raise UnknownCluster(
            f"--cluster {text}: write nodes x devices x name, as 64x8xH800, with one of {known}; or {LOCAL} for this "
            "machine"
        )
    first, second = match[1], match[2]
    nodes, per_node = (int(first), int(second)) if second else (1, int(first or 1))
    if nodes < 1 or per_node < 1:
        raise UnknownCluster(f"--cluster {text}: there must be at least one node and one device")
    return Cluster(nodes, per_node, DEVICES[name])
