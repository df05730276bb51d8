"""Unprivileged users for jails that root starts: one per zygote, shared with nobody."""

import os
import random
import threading

from rewards.sandbox.errors import SandboxUnavailable

_RANGES = ((200_000, 300_000), (30_000, 60_000))  # the second for containers that map 65,536 users
_taken: set[int] = set()
_lock = threading.Lock()
# A thread that holds it is left behind in the original.
os.register_at_fork(after_in_child=lambda: _lock.release() if _lock.locked() else None)


def take_user() -> int | None:
    """A user id without processes, or None when we are no root and stay who we are. Raises SandboxUnavailable."""
    if os.geteuid() != 0:
        return None
    running = _users_with_processes()
    with _lock:
        for low, high in _RANGES:
            if not _mapped(low, high):
                continue
            for _ in range(100):
                uid = random.SystemRandom().randrange(low, high)
                if uid not in running and uid not in _taken:
                    _taken.add(uid)
                    return uid
    raise SandboxUnavailable(
        "Root has no other user to become: this user namespace maps too few ids. Run as an ordinary user instead."
    )


def give_back(uid: int | None) -> None:
    with _lock:
        _taken.discard(uid if uid is not None else -1)


def _mapped(low: int, high: int) -> bool:
    """Whether this user namespace has all ids from `low` to `high`."""
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as lines:
            ranges = [tuple(map(int, line.split())) for line in lines]
        if not any(first <= low and high <= first + count for first, _, count in ranges):
            return False
    return True


def _users_with_processes() -> set[int]:
    users = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                users.add(entry.stat().st_uid)
            except OSError:
                continue
    return users
