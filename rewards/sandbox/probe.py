"""Tries a tier with short attacks and one honest program, before any program of a model runs in it."""

import json
import os
import platform
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.jail import kernel, landlock
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Slot, run_once
from rewards.sandbox.running_job import Job, sealed
from rewards.sandbox.tiers import TIERS
from rewards.sandbox.zygote_client import ENVIRONMENT, Launch

_LIMITS = Limits(cpu_s=2.0, wall_s=20.0, memory_mb=64, threads=8, stdout_kb=64)
_PREFIX = """
import ctypes, json, os, resource, signal, socket, sys
host = json.loads(sys.stdin.readline())
libc = ctypes.CDLL(None, use_errno=True)
def refused(result): print("REFUSED" if result < 0 else "DONE")
"""
# Each ends with an exception, or prints REFUSED, when the walls hold; DONE means that they do not.
ATTACKS = {
    "read a file of the host": "print('DONE' if open(host['file']).read() else 'REFUSED')",
    "list the home folders": "os.listdir('/home'); print('DONE')",
    "write outside of the job folder": "open(host['beside'], 'w').close(); print('DONE')",
    "connect to the loopback": "socket.create_connection(('127.0.0.1', host['port']), 1); print('DONE')",
    "connect to a unix socket": "socket.socket(socket.AF_UNIX).connect('\\0' + host['unix']); print('DONE')",
    "signal the judge": "os.kill(host['judge'], 0); print('DONE')",
    "start a process": "os.fork(); print('DONE')",
    "trace the judge": "refused(libc.ptrace(16, host['judge'], 0, 0))",
    "memory that no limit counts": "os.memfd_create('x'); print('DONE')",
    "the environment of the judge": "print('DONE' if host['variable'] in os.environ else 'REFUSED')",
    "read the judge in /proc": "open(f\"/proc/{host['judge']}/environ\", 'rb').read(); print('DONE')",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)); print('DONE')",
    "a namespace of its own": "refused(libc.unshare(0x10000000))",
    "more memory than allowed": "print('DONE' if len(bytes(256 << 20)) else 'REFUSED')",
    "open descriptors of the judge": "def is_open(fd):\n    try: return bool(os.fstat(fd))\n"
    "    except OSError: return False\nprint('DONE' if any(map(is_open, range(3, 1024))) else 'REFUSED')",
    "more threads than allowed": "import threading, time\n"
    "for _ in range(64): threading.Thread(target=time.sleep, args=(1,), daemon=True).start()\nprint('DONE')",
}
_HONEST = "import math, tempfile\nwith tempfile.TemporaryFile() as file: file.write(b'x')\nprint(math.comb(6, 3))"


_SWITCHES = (
    "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    good: bool
    detail: str


def probe_tier(tier: str) -> str:
    """Why the tier does not count on this machine, or "" when it holds."""
    bad = [finding for finding in try_tier(tier) if not finding.good]
    return "; ".join(f"{finding.name}: {finding.detail}" for finding in bad[:3])


def try_tier(tier: str) -> list[Finding]:
    """Start one zygote of the tier, attack from inside, and run an honest program."""
    slot = Slot(Launch(tier=tier))
    try:
        slot.zygote()
    except (SandboxUnavailable, OSError) as error:
        return [Finding("start", False, str(error))]
    try:
        with _bait() as bait:
            findings = [_attack(slot, name, code, bait) for name, code in ATTACKS.items()]
        output = _run(slot, _HONEST)
        works = output == b"20\n"
        return [*findings, Finding("an honest program", works, "runs" if works else f"got {output!r}")]
    finally:
        slot.close()


def describe_machine() -> list[Finding]:
    """What the tiers need of the kernel, as facts."""
    missing = kernel.supported()
    facts = [Finding("system", missing is None, missing or f"Linux {platform.release()}, {platform.machine()}")]
    abi = landlock.version() if missing is None else 0
    facts.append(Finding("Landlock", abi > 0, f"ABI {abi}" if abi else "not available"))
    facts.append(Finding("user", True, f"uid {os.geteuid()}"))
    for name in _SWITCHES:
        try:
            with open(f"/proc/sys/{name}") as file:
                value = file.read().strip()
        except OSError:
            continue
        wanted_zero = name.endswith("restrict_unprivileged_userns")
        facts.append(Finding(name.replace("/", "."), (value == "0") == wanted_zero, value))
    return facts


def doctor() -> tuple[list[Finding], dict[str, list[Finding]]]:
    """Facts of the machine, and what each tier held and let through."""
    return describe_machine(), {tier: try_tier(tier) for tier in TIERS}


def _attack(slot: Slot, name: str, code: str, bait: dict) -> Finding:
    output = _run(slot, _PREFIX + code, json.dumps(bait).encode())
    if output is None:
        return Finding(name, False, "the job did not start")
    leaked = b"DONE" in output
    return Finding(name, not leaked, "not refused" if leaked else "refused")


def _run(slot: Slot, source: str, stdin: bytes = b"") -> bytes | None:
    """Output of a job; None when it never started."""
    payload = sealed(source.encode())
    try:
        running = run_once(slot, Job(mode="script", payload=payload, limits=_LIMITS, stdin=stdin))
        return running.result.stdout if running.started else None
    finally:
        os.close(payload)


@contextmanager
def _bait() -> Iterator[dict]:
    """What an attacker would look for, and hints where it is."""
    secret = secrets.token_hex(16)
    name = f"r1-probe-{secret}"
    with (
        tempfile.TemporaryDirectory(prefix="r1-probe-") as folder,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        os.chmod(folder, 0o777)  # so that walls refuse, and not ownership
        path = os.path.join(folder, "secret")
        with open(path, "w") as file:
            file.write(secret)
        os.chmod(path, 0o644)
        unix.bind("\0" + name)
        unix.listen()
        yield {
            "file": path,
            "beside": os.path.join(folder, "written"),
            "port": tcp.getsockname()[1],
            "unix": name,
            "judge": os.getpid(),
            "variable": next((key for key in os.environ if key not in ENVIRONMENT), "R1_NONE"),
        }
