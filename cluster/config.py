"""How a run uses its cluster: the key `cluster` of a pipeline.

It says how stages are run and not what they make, so it may change at any time.
"""

from typing import Literal

from pydantic import BaseModel, Field


class ClusterConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """How the processes of every stage use the machines."""

    placement: Literal["colocated", "disaggregated"] = Field(
        default="colocated",
        description="colocated: processes take turns on the same cores and GPUs, which is right for one machine; on "
        "several, each GPU gets one rank, and generators are spread over the nodes; disaggregated: trainer ranks, "
        "generators and reward workers get bundles of their own, reserved before anything is loaded",
    )
    placement_deadline_s: float = Field(
        default=600.0,
        gt=0,
        description="disaggregated: seconds to wait for the bundles; ten minutes, as a node of a cloud takes to join",
    )
    cpus_per_trainer: float = Field(default=1.0, ge=0, description="disaggregated: cores reserved for a trainer rank")
    cpus_per_generator: float = Field(default=1.0, ge=0, description="disaggregated: cores reserved for a generator")
    cpus_per_reward_worker: float = Field(
        default=1.0, ge=0, description="disaggregated: cores reserved for a reward worker; judges of programs use more"
    )
    mirror: str | None = Field(
        default=None,
        description="an fsspec URL (s3://bucket/run, gs://..., file:///...): every artifact is copied there when it is "
        "made, as r1 push does; none: the run folder is all there is",
    )
    memory_every_s: float = Field(
        default=30.0,
        gt=0,
        description="seconds between two looks at the memory of all processes, for memory.jsonl and memory_limit_gib; "
        "a look costs some 25 ms of a core per GiB they hold",
    )
    memory_limit_gib: float | None = Field(
        default=None,
        gt=0,
        description="the stage stops when one actor with the processes below it holds more (proportional set size), "
        "so that it ends with a sentence and not by the kernel's OOM killer; none: off, as what is too much depends on "
        "the machine and on what shares it",
    )
