"""Which Python runs in the jail, and which paths of the host it needs to see."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rewards.sandbox.errors import SandboxUnavailable

# Libraries that extension modules load late. Nothing below /etc, /home or /var is ever shown.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
# Imported before the first job: what contest programs import, so that no job pays for it.
STANDARD_MODULES = tuple(
    """
    abc array atexit bisect cmath collections contextlib copy dataclasses datetime decimal enum fractions functools
    hashlib heapq io itertools json locale math numbers operator queue random re statistics string struct textwrap
    threading time traceback types typing
    """.split()  # noqa: SIM905  a list this long reads better as words
)
# What a package imports late, and its users nearly always.
SUBMODULES = {"numpy": ("numpy.random", "numpy.linalg")}
_QUERY = "import json,sysconfig,sys;p=sysconfig.get_paths();print(json.dumps([p['stdlib'],p['platstdlib']]))"
_OTHERS = ("/usr/bin/python3", "/usr/local/bin/python3")


@dataclass(frozen=True, slots=True)
class Interpreter:
    executable: str
    library: tuple[str, ...]  # folders of the standard library


def choose_interpreter(uid: int | None) -> Interpreter:
    """This Python, or when user `uid` cannot reach it (it lies in root's home) the system's.

    Raises SandboxUnavailable when there is none.
    """
    own = Interpreter(sys.executable, tuple(sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})))
    if uid is None or all(_reachable(path) for path in own.library):
        return own
    for executable in _OTHERS:
        if os.path.exists(executable):
            found = _ask(executable)
            if found is not None and all(_reachable(path) for path in found.library):
                return found
    raise SandboxUnavailable(
        f"An ordinary user cannot read the Python in {own.library[0]}, and there is no {' or '.join(_OTHERS)}. "
        "Install Python outside of root's home, or make that folder passable for others."
    )


def package_paths(packages: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(folders for sys.path, paths to show) of packages to keep warm. Raises SandboxUnavailable for a missing one."""
    search, shown = [], []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SandboxUnavailable(f"warm: the package {package} is not installed.")
        folder = Path(next(iter(spec.submodule_search_locations)))
        search.append(str(folder.parent))
        shown += [str(folder), *map(str, folder.parent.glob(f"{package}.libs"))]
    return list(dict.fromkeys(search)), shown


@lru_cache(maxsize=4)
def _ask(executable: str) -> Interpreter | None:
    try:
        answer = subprocess.run([executable, "-I", "-S", "-c", _QUERY], capture_output=True, timeout=60, check=True)
        return Interpreter(executable, tuple(sorted(set(json.loads(answer.stdout)))))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _reachable(path: str) -> bool:
    """Whether everybody may pass all folders on the way and read the last one."""
    real = Path(os.path.realpath(path))
    try:
        return all(parent.stat().st_mode & 0o001 for parent in real.parents) and real.stat().st_mode & 0o005 == 0o005
    except OSError:
        return False
