"""Which walls there are on this machine: tried out with attacks, never guessed."""

import os
import sys
import threading
from collections.abc import Callable

from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.jail import kernel

NAMESPACES, LANDLOCK, UNSAFE = "ns", "landlock", "unsafe-none"
TIERS = (NAMESPACES, LANDLOCK)  # strongest first
_lock = threading.Lock()
# A thread that holds it is left behind in the original.
os.register_at_fork(after_in_child=lambda: _lock.release() if _lock.locked() else None)
_failures: dict[tuple[str, int], str] = {}  # (tier, user) -> what the probe found, "" when all was contained

_FIXES = {
    NAMESPACES: "run as root, or allow unprivileged user namespaces (sysctl user.max_user_namespaces, "
    "kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0)",
    LANDLOCK: "use a kernel from 5.13 on with Landlock switched on (lsm=landlock,...)",
}


def choose_tier(wanted: str, probe: Callable[[str], str] | None = None) -> str:
    """The tier to use. Raises SandboxUnavailable or, for an unknown name, ValueError.

    `probe(tier)` returns why a tier does not count, or "".
    """
    if wanted == UNSAFE:
        if os.geteuid() == 0:
            raise SandboxUnavailable(
                "tier unsafe-none runs a model's programs without any walls, and never as root: "
                "use another tier, or run as an ordinary user."
            )
        print("WARNING: sandbox tier unsafe-none: programs of the model run WITHOUT ISOLATION.", file=sys.stderr)
        return UNSAFE
    if wanted != "auto" and wanted not in TIERS:
        raise ValueError(f"tier: {wanted!r} is not one of auto, {', '.join(TIERS)}, {UNSAFE}.")
    tried = {}
    for tier in TIERS if wanted == "auto" else (wanted,):
        reason = _failure(tier, probe)
        if not reason:
            return tier
        tried[tier] = reason
    found = "; ".join(f"tier {tier}: {reason}" for tier, reason in tried.items())
    fixes = "; or ".join(_FIXES[tier] for tier in tried)
    raise SandboxUnavailable(f"No walls for a model's programs here, so none is run. {found}. Mend: {fixes}.")


def _failure(tier: str, probe: Callable[[str], str] | None) -> str:
    missing = kernel.supported()
    if missing:
        return missing
    if probe is not None:
        return probe(tier)
    from rewards.sandbox.probe import probe_tier  # it needs the pool, which needs this module

    key = (tier, os.geteuid())
    with _lock:
        if key not in _failures:
            _failures[key] = probe_tier(tier)
        return _failures[key]
