"""The path of a forked child from the zygote to the program: limits, walls, started byte, program. It never returns."""

import contextlib
import fcntl
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from rewards.sandbox.jail import kernel, landlock, python_runner, seccomp, test_runner

STARTED, UNCOMPILABLE = b"S", b"C"
_PAYLOAD, _STATUS = 20, 21


def run_job(request: dict[str, Any], descriptors: dict[str, int], ruleset: int, hand_over: Callable | None) -> None:
    """Become the job. `descriptors`: payload, status, stdin, stdout, stderr and, for modules, calls and claims.

    Everything before the started byte is our work: its failure is told on the status pipe and is an internal error.
    `hand_over` (tier landlock) sends the listener of the counting filter to the zygote.
    """
    status = descriptors["status"]
    try:
        os.setsid()
        kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
        arguments = _write_source(request, descriptors["payload"])
        _restrict(request, ruleset, hand_over)
        _move_descriptors(descriptors, keep_payload=arguments is None)
        status = _STATUS
        os.write(status, STARTED)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(status, f"{type(error).__name__}: {error}".encode()[:900])
        os._exit(1)
    if request["mode"] == "command":
        assert arguments is not None
        _execute(arguments)
    if request["mode"] == "binary":
        _execute_descriptor(request["argv"])
    os._exit(_run_python(request["mode"], request["payload_bytes"]))


def _restrict(request: dict[str, Any], ruleset: int, hand_over: Callable | None) -> None:
    set_limits(request["rlimits"])
    if request["policy"] is None:  # tier unsafe-none
        return
    if ruleset >= 0:
        landlock.restrict_self(ruleset)
    kernel.drop_capabilities()
    if hand_over is not None:
        hand_over(seccomp.install(seccomp.watch_filter(), listener=True))
    policy = seccomp.Policy(own_pid=os.getpid(), read_only_mounts=hand_over is None, **request["policy"])
    seccomp.install(seccomp.job_filter(policy))


def set_limits(limits: dict[str, int]) -> None:
    """Soft and hard limit alike, except processor time, where one more second turns SIGXCPU into SIGKILL."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        soft, hard = (value, value + 1) if name == "CPU" else (value, value)
        already = resource.getrlimit(kind)[1]
        if already != resource.RLIM_INFINITY:  # only root may raise a hard limit
            soft, hard = min(soft, already), min(hard, already)
        resource.setrlimit(kind, (soft, hard))


def _write_source(request: dict[str, Any], payload: int) -> list[str] | None:
    """For commands: put the payload into the job folder under its name. Returns the command."""
    if request["mode"] != "command":
        return None
    target = os.open(request["source_name"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    offset = 0
    while chunk := os.pread(payload, 1 << 20, offset):
        offset += os.write(target, chunk)
    os.close(target)
    return request["argv"]


def _move_descriptors(descriptors: dict[str, int], keep_payload: bool) -> None:
    """Nothing of the zygote stays open: standard streams, calls and claims, payload and status only."""
    # First all out of the way of the places they go to.
    raised = {name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STATUS + 1) for name, fd in descriptors.items()}
    places = [place for place in enumerate(("stdin", "stdout", "stderr", "calls", "claims")) if place[1] in raised]
    for place, name in places:
        os.dup2(raised[name], place, inheritable=True)
    os.dup2(raised["payload"], _PAYLOAD, inheritable=False)
    os.dup2(raised["status"], _STATUS, inheritable=False)
    kernel.close_range(len(places), _PAYLOAD - (1 if keep_payload else 0))
    kernel.close_range(_STATUS + 1)


def _run_python(mode: str, size: int) -> int:
    """Compile, then close the status pipe, then run: from there on nobody believes this process."""
    if mode == "unit-test":
        os.close(_STATUS)
        python_runner.open_standard_streams()
        return test_runner.run_unit_test(_read_payload(size))
    try:
        code = python_runner.compile_program(_read_payload(size))
    except python_runner.Uncompilable as error:
        os.write(_STATUS, UNCOMPILABLE + str(error).encode(errors="replace"))
        return 1
    os.close(_STATUS)
    python_runner.open_standard_streams()
    python_runner.forget_ourselves()
    return python_runner.run_script(code) if mode == "script" else python_runner.serve_module(code)


def _read_payload(size: int) -> bytes:
    payload = os.pread(_PAYLOAD, size, 0)
    os.close(_PAYLOAD)
    return payload


def _execute(arguments: list[str]) -> None:
    try:
        os.execve(arguments[0], arguments, dict(os.environ))
    except OSError as error:
        os.write(2, f"{arguments[0]}: {error.strerror}\n".encode())
        os._exit(127)


def _execute_descriptor(arguments: list[str]) -> None:
    try:
        os.execve(_PAYLOAD, arguments, dict(os.environ))
    except OSError as error:
        os.write(2, f"not an executable program: {error.strerror}\n".encode())
        os._exit(126)


def send_listener(channel: socket.socket, listener: int) -> None:
    socket.send_fds(channel, [b"L"], [listener])
    os.close(listener)
    channel.close()
