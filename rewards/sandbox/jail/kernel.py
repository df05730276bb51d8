"""System calls that Python does not offer, by number through ctypes. Linux on x86-64 only.

Each function raises OSError with the name of the call, so that a report can say which step of the jail failed.
"""

import ctypes
import os
import platform

ARCHITECTURE = "x86_64"

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWTIME = 0x10000000, 0x20000000, 0x40000000, 0x80
CLONE_THREAD = 0x10000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

_NUMBERS = {
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "capset": 126,
    "unshare": 272,
    "seccomp": 317,
    "open_tree": 428,
    "move_mount": 429,
    "mount_setattr": 442,
    "close_range": 436,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def supported() -> str | None:
    """None on a machine whose system calls are known here, else what is missing."""
    if os.uname().sysname != "Linux":
        return f"the jail needs Linux, this is {os.uname().sysname}"
    if platform.machine() != ARCHITECTURE or ctypes.sizeof(ctypes.c_void_p) != 8:
        return f"the system call table covers {ARCHITECTURE} only, this is {platform.machine()}"
    return None


def call(name: str, *arguments: int | bytes | ctypes.Array | None) -> int:
    """One system call; numbers are passed as unsigned longs. Raises OSError naming it."""
    words = [ctypes.c_ulong(word & (2**64 - 1)) if isinstance(word, int) else word for word in arguments]
    result = _libc.syscall(ctypes.c_long(_NUMBERS[name]), *words)
    if result < 0:
        raise _error(name)
    return result


def prctl(option: int, argument: int = 0, third: int | ctypes.Array = 0) -> int:
    words = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in (argument, third, 0, 0)]
    result = _libc.prctl(option, *words)
    if result < 0:
        raise _error(f"prctl {option}")
    return result


def _error(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    call("unshare", flags)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())


def unmount(target: str) -> None:
    call("umount2", os.fsencode(target), MNT_DETACH)


def clone_tree(path: str) -> int:
    """A detached copy of the mounts at `path`, as a file descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    return call("open_tree", _AT_FDCWD, os.fsencode(path), flags)


def restrict_mount(target: int | str, attributes: int) -> None:
    """Add mount attributes, e.g. read-only; to all mounts of a detached copy, or to the one at a path."""
    setting = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    if isinstance(target, int):
        call("mount_setattr", target, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, setting, ctypes.sizeof(setting))
    else:
        call("mount_setattr", _AT_FDCWD, os.fsencode(target), 0, setting, ctypes.sizeof(setting))


def attach_tree(tree: int, target: str) -> None:
    call("move_mount", tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def enter_root(path: str) -> None:
    """Make the mount at `path` the root; nothing of the old one stays reachable."""
    os.chdir(path)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def drop_capabilities() -> None:
    """Empty effective, permitted and inheritable sets; with no_new_privs nothing brings them back."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())


def drop_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # the last capability of this kernel is passed, or it is not ours to drop
            return


def close_range(first: int, last: int = 2**32 - 1) -> None:
    """Close all descriptors from `first` to `last`, both included."""
    call("close_range", first, last, 0)
