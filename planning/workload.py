"""What a stage computes, independent of any machine: completions to sample, rows to read, steps to train.

A stage is a list of parts. Counts are of the whole stage; lengths are distributions (planning.lengths).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planning.architecture import Architecture
from planning.lengths import Lengths
from rollouts.config import GeneratorConfig
from training.config import OptimizerConfig, TrainerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSize:
    rows: float
    tokens: float  # of a row, prompt and all; 0: not known
    longest: float  # row
    known: bool  # read from an artifact, not reckoned


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One stage to plan."""

    name: str
    kind: str
    config: Any
    models: Mapping[str, Architecture]  # by role: policy, student, teacher, judge, helpful_rm, checkpoints.base, ...
    dataset: DatasetSize | None = None
    measured_length: float | None = None  # mean completion tokens of an earlier run of this stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """`rounds` times: `completions` at once, `group` of each prompt."""

    role: str
    model: Architecture
    generator: GeneratorConfig
    in_trainer: bool
    rounds: float
    completions: float
    group: int
    prompt: float  # tokens
    lengths: Lengths

    @property
    def tokens(self) -> float:
        return self.rounds * self.completions * self.lengths.mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`rounds` times: a forward pass over `sequences`, by the trainer's ranks (`by_trainer`) or another process."""

    role: str  # old logprobs | reference | helpful_rm | ...
    model: Architecture
    by_trainer: bool
    rounds: float
    sequences: float
    prompt: float
    lengths: Lengths
    predicts: bool = True  # whether it asks the head for every completion token

    @property
    def tokens(self) -> float:
        return self.rounds * self.sequences * (self.prompt + self.lengths.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """`steps` optimizer steps on `sequences` each."""

    model: Architecture
    steps: float
    sequences: float
    prompt: float
    lengths: Lengths
    head_products: int = 3  # matrix products with the head: 4 where its logits are made twice
    entropy: bool = False
    mtp: bool = False
    with_head: bool = True  # a reward model has a scalar one

    @property
    def tokens(self) -> float:
        return self.steps * self.sequences * (self.prompt + self.lengths.mean)


Part = Sampling | Reading | Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with processes of its own, there as long as the stage is: a judge's engine, or a reward model."""

    role: str
    weights: float  # bytes on each device
    devices: int
    share: float = 0.0  # of a GPU's memory, which its engine takes (planning.memory.engine_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    parts: list[Part] = field(default_factory=list)
    trainer: TrainerConfig | None = None
    optimizer: OptimizerConfig | None = None
    reference: bool = False
    syncs: float = 0.0  # weight syncs
    in_trainer: bool = False
    generator: GeneratorConfig | None = None  # the stage's own, not its judges'
    loaded: tuple[Loaded, ...] = ()  # beside trainer and generators
    leaves: DatasetSize | None = None
    taken_for_granted: tuple[str, ...] = ()  # names of assumptions that decide this stage

    def of(self, kind: type) -> list[Any]:
        return [part for part in self.parts if isinstance(part, kind)]
