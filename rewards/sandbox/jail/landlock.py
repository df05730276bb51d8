"""Landlock: which files a job may touch, also where no namespace can be made. Kernel 5.13 and newer.

A rule set is built once per zygote; a job only restricts itself with it. Source: landlock(7), linux/landlock.h.
"""

import ctypes
import os
import stat
import struct
from contextlib import suppress

from rewards.sandbox.jail import kernel

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of file rights, each ABI handles all of them
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11
_QUERY_VERSION, _RULE_PATH_BENEATH = 1, 1

READ = _READ_FILE | _READ_DIR
READ_AND_RUN = READ | _EXECUTE
WRITE = READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SYM | _REFER | _TRUNCATE
DEVICE = _READ_FILE | _WRITE_FILE
_FOR_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE


def version() -> int:
    """ABI of Landlock; 0 when the kernel has none or it is switched off."""
    try:
        return kernel.call("landlock_create_ruleset", None, 0, _QUERY_VERSION)
    except OSError:
        return 0


def make_ruleset(paths: dict[str, int]) -> int:
    """A rule set as a descriptor: `paths` maps files and folders to their rights, everything else is refused.

    Paths that do not exist are left out. Where the ABI has them, TCP and signals or abstract sockets to others are
    refused as well.
    """
    abi = version()
    handled = (1 << _RIGHTS_BY_ABI[max(1, min(abi, 5))]) - 1
    words = [handled] + [_ALL_TCP] * (abi >= 4) + [_ALL_SCOPES] * (abi >= 6)
    attributes = (ctypes.c_uint64 * len(words))(*words)
    ruleset = kernel.call("landlock_create_ruleset", attributes, ctypes.sizeof(attributes), 0)
    for path, rights in paths.items():
        with suppress(FileNotFoundError):
            _allow(ruleset, path, rights & handled)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FOR_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor), 12)
        kernel.call("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def restrict_self(ruleset: int) -> None:
    kernel.call("landlock_restrict_self", ruleset, 0)
