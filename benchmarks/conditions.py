"""What a figure is worth nothing without: the command, the machine and the versions behind it."""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def conditions(*packages: str) -> dict[str, Any]:
    """For the head of a result file. Call it before measuring: it holds the load of the machine at that moment."""
    arguments = [Path(word).name if os.path.isabs(word) else word for word in sys.argv]
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "command": shlex.join(["python", *arguments]),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "machine": {
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": platform.platform(),
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | versions,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
