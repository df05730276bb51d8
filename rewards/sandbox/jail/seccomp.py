"""The system calls a job may make: an allow-list in BPF, assembled here. x86-64.

Everything else fails with EPERM; foreign system call tables (i386, x32) end the process. What no namespace isolates is
refused by name or argument: sockets (also AF_VSOCK), file locks and leases, key rings, io_uring, memfd and SysV memory
(no limit counts them), new processes, signals to others.

Sources: seccomp(2), linux/filter.h; the refused list follows what IOI isolate and Docker's default profile refuse.
"""

import ctypes
import struct
from dataclasses import dataclass

from rewards.sandbox.jail import kernel

KILL, ALLOW, NOTIFY = 0x80000000, 0x7FFF0000, 0x7FC00000
_ERRNO = 0x00050000
EPERM, ENOSYS = _ERRNO | 1, _ERRNO | 38

_LD, _JEQ, _JGE, _JSET, _JA, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x05, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_FLAG_NEW_LISTENER = 8

_PLAIN = """
read:0 write:1 open:2 close:3 stat:4 fstat:5 lstat:6 poll:7 lseek:8 mprotect:10 munmap:11 brk:12 rt_sigaction:13
rt_sigprocmask:14 rt_sigreturn:15 pread64:17 pwrite64:18 readv:19 writev:20 access:21 pipe:22 select:23 sched_yield:24
mremap:25 msync:26 madvise:28 dup:32 dup2:33 pause:34 nanosleep:35 getitimer:36 alarm:37 setitimer:38 getpid:39
sendfile:40 exit:60 wait4:61 uname:63 fsync:74 fdatasync:75 ftruncate:77 getcwd:79 chdir:80 fchdir:81
rename:82 mkdir:83 rmdir:84 unlink:87 readlink:89 umask:95 gettimeofday:96 getrlimit:97 getrusage:98
sysinfo:99 times:100 getuid:102 getgid:104 geteuid:107 getegid:108 getppid:110 getpgrp:111 getgroups:115 getresuid:118
getresgid:120 getpgid:121 getsid:124 rt_sigpending:127 rt_sigtimedwait:128 rt_sigsuspend:130 sigaltstack:131
statfs:137 fstatfs:138 getpriority:140 sched_getparam:143 sched_getscheduler:145 setrlimit:160 gettid:186
time:201 futex:202 sched_getaffinity:204 epoll_create:213 getdents64:217 set_tid_address:218 restart_syscall:219
fadvise64:221 clock_gettime:228 clock_getres:229 clock_nanosleep:230 exit_group:231 epoll_wait:232 epoll_ctl:233
waitid:247 mkdirat:258 openat:257 newfstatat:262 unlinkat:263 renameat:264 readlinkat:267 faccessat:269 pselect6:270
ppoll:271 set_robust_list:273 get_robust_list:274 epoll_pwait:281 fallocate:285 eventfd2:290
epoll_create1:291 dup3:292 pipe2:293 preadv:295 pwritev:296 getcpu:309 renameat2:316 getrandom:318 membarrier:324
copy_file_range:326 preadv2:327 pwritev2:328 statx:332 rseq:334 close_range:436 faccessat2:439
arch_prctl:158
"""
# Landlock does not look at changes of mode, times or (before ABI 3) size, and nothing there counts symbolic links.
_WITH_READ_ONLY_MOUNTS = "truncate:76 creat:85 symlink:88 chmod:90 fchmod:91 symlinkat:266 fchmodat:268 utimensat:280"
_OPEN, _OPENAT, _MKDIR, _MKDIRAT = 2, 257, 83, 258
_MMAP, _IOCTL, _CLONE, _FORK, _VFORK, _EXECVE, _KILL, _FCNTL = 9, 16, 56, 57, 58, 59, 62, 72
_PRCTL, _TGKILL, _PRLIMIT64, _EXECVEAT, _CLONE3, _OPENAT2 = 157, 234, 302, 322, 435, 437
_CREATES = 0o100 | 0o20000000  # O_CREAT, __O_TMPFILE
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS
_NAMESPACES = (
    kernel.CLONE_NEWNS | kernel.CLONE_NEWCGROUP | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUSER
) | (kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWTIME)
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # terminal size, bytes waiting, close-on-exec, non-blocking
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # duplicate, flags; no locks, leases, notifications, pipe sizes
_PRCTLS = (3, 15, 16, 21, 39, 0x53564D41)  # names, and asking what is set

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one kind of job may do beyond the common list."""

    own_pid: int
    processes: bool = False  # fork and vfork, for compilers
    execute: str = "no"  # "no", "descriptor" (an open file only) or "path"
    shared_memory: bool = True  # anonymous MAP_SHARED, which RLIMIT_DATA does not count
    read_only_mounts: bool = True  # files of the host are safe from calls that Landlock does not look at


def job_filter(policy: Policy) -> bytes:
    """The allow-list as packed BPF."""
    allowed = f"{_PLAIN} {_WITH_READ_ONLY_MOUNTS}" if policy.read_only_mounts else _PLAIN
    rules: dict[int, list[Instruction]] = {int(entry.split(":")[1]): _returns(ALLOW) for entry in allowed.split()}
    rules[_MMAP] = _returns(ALLOW) if policy.shared_memory else _unless_all_bits(3, _SHARED_ANONYMOUS)
    rules[_IOCTL] = _one_of(1, _IOCTLS)
    rules[_FCNTL] = _one_of(1, _FCNTLS)
    rules[_PRCTL] = _one_of(0, _PRCTLS)
    rules[_KILL] = rules[_TGKILL] = _one_of(0, (policy.own_pid,))
    rules[_PRLIMIT64] = _one_of(0, (0, policy.own_pid))
    rules[_CLONE] = _clone(threads_only=not policy.processes)
    rules[_CLONE3] = rules[_OPENAT2] = _returns(ENOSYS)  # libc falls back to the calls above, whose arguments we see
    if policy.processes:
        rules[_FORK] = rules[_VFORK] = _returns(ALLOW)
    if policy.execute == "path":
        rules[_EXECVE] = _returns(ALLOW)
    if policy.execute != "no":
        rules[_EXECVEAT] = _one_of(4, (0x1000,))  # AT_EMPTY_PATH: the descriptor itself
    return _assemble(rules, otherwise=EPERM)


def watch_filter() -> bytes:
    """Reports file creation and new threads to a listener and lets everything else through."""
    creates_openat = [_load_argument(2), (_JSET, 0, 1, _CREATES), *_returns(NOTIFY), *_returns(ALLOW)]
    creates_open = [_load_argument(1), (_JSET, 0, 1, _CREATES), *_returns(NOTIFY), *_returns(ALLOW)]
    rules = {
        _OPEN: creates_open,
        _OPENAT: creates_openat,
        _MKDIR: _returns(NOTIFY),
        _MKDIRAT: _returns(NOTIFY),
        _CLONE: _returns(NOTIFY),
        _CLONE3: _returns(ENOSYS),
    }
    return _assemble(rules, otherwise=ALLOW)


def install(program: bytes, listener: bool = False) -> int:
    """Install a filter for this process and all it becomes; with `listener`, return the descriptor of its reports.

    no_new_privs must be set. It cannot be taken back.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code)), 16)
    return kernel.call("seccomp", 1, _FLAG_NEW_LISTENER if listener else 0, header)


def _returns(action: int) -> list[Instruction]:
    return [(_RET, 0, 0, action)]


def _load_argument(index: int) -> Instruction:
    """Low 32 bits of an argument: all that the kernel reads of the arguments checked here."""
    return (_LD, 0, 0, _ARGUMENTS + 8 * index)


def _one_of(argument: int, values: tuple[int, ...]) -> list[Instruction]:
    tests = [(_JEQ, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_load_argument(argument), *tests, *_returns(EPERM), *_returns(ALLOW)]


def _unless_all_bits(argument: int, bits: int) -> list[Instruction]:
    return [_load_argument(argument), (_AND, 0, 0, bits), (_JEQ, 0, 1, bits), *_returns(EPERM), *_returns(ALLOW)]


def _clone(threads_only: bool) -> list[Instruction]:
    refuse_new_namespaces = [_load_argument(0), (_JSET, 0, 1, _NAMESPACES), *_returns(EPERM)]
    if not threads_only:
        return [*refuse_new_namespaces, *_returns(ALLOW)]
    return [*refuse_new_namespaces, (_JSET, 1, 0, kernel.CLONE_THREAD), *_returns(EPERM), *_returns(ALLOW)]


def _assemble(rules: dict[int, list[Instruction]], otherwise: int) -> bytes:
    """Check the architecture, then search the ranges of system call numbers by halving."""
    ranges: list[tuple[int, list[Instruction]]] = [(0, _returns(otherwise))]  # first number, what to do
    for number in sorted(rules):
        if ranges[-1][0] == number:
            ranges.pop()
        if not ranges or ranges[-1][1] != rules[number]:
            ranges.append((number, rules[number]))
        ranges.append((number + 1, _returns(otherwise)))
    head: list[Instruction] = [
        (_LD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _AUDIT_ARCH_X86_64),
        *_returns(KILL),
        (_LD, 0, 0, _NUMBER),
        (_JGE, 0, 1, _X32_BIT),
        *_returns(KILL),
    ]
    merged = [entry for place, entry in enumerate(ranges) if place == 0 or entry[1] != ranges[place - 1][1]]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in head + _search(merged))


def _search(ranges: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(ranges) == 1:
        return ranges[0][1]
    half = len(ranges) // 2
    low, high = _search(ranges[:half]), _search(ranges[half:])
    if len(low) <= 255:
        return [(_JGE, len(low), 0, ranges[half][0]), *low, *high]
    return [(_JGE, 0, 1, ranges[half][0]), (_JA, 0, 0, len(low)), *low, *high]
