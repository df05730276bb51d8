"""Turns this process into the first process of a world of its own: user, mounts, processes, network, IPC, host name."""

import os
from collections.abc import Iterable

from rewards.sandbox.jail import kernel
from rewards.sandbox.jail.mounts import build_root

INSIDE_ID = 1000  # not 0: an exec must not bring capabilities back
_ALL = (kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC) | (
    kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
)


def enter(shown: Iterable[str], uid: int | None) -> None:
    """Return in a new process that is number 1 of new namespaces; the calling one waits for it and ends with it.

    Args:
        shown: paths of the host to show read-only.
        uid: unprivileged user to become first; needed as root, None otherwise.
    """
    own_entry = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # still there after the root is left
    if uid is not None:
        kernel.unshare(kernel.CLONE_NEWNS)
        build_root(shown)  # as root, who reaches an interpreter in a home folder
        become(uid)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else the id maps below belong to root
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    kernel.unshare(_ALL)
    _write(own_entry, "setgroups", "deny")
    _write(own_entry, "uid_map", f"{INSIDE_ID} {outside_uid} 1")
    _write(own_entry, "gid_map", f"{INSIDE_ID} {outside_gid} 1")
    os.close(own_entry)
    if uid is None:
        build_root(shown)
    _continue_as_first_process()


def become(uid: int) -> None:
    """Root becomes an ordinary user for good."""
    kernel.drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _continue_as_first_process() -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        # Set before the starter can be told, so that its death is never missed.
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
        os.write(tell, b"1")
        os.close(ready)
        os.close(tell)
        return
    os.read(ready, 1)
    kernel.close_range(3)  # the control socket above all: when the new process dies, the other side must see its end
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _write(folder: int, name: str, text: str) -> None:
    try:
        descriptor = os.open(name, os.O_WRONLY, dir_fd=folder)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {error.strerror}") from None
