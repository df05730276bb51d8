"""The sandbox of another machine behind the same methods: SandboxFusion's /run_code and Piston's /api/v2/execute.

What goes out is the program and its standard input, never an expected output: we compare here. A service that fails,
is busy or late is an internal error, tried again with growing pauses, and never a verdict about the program.
Function calls are wrapped into a program that prints its claim; unit tests need two jails that talk, and are refused.
"""

import inspect
import json
import secrets
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from rewards.sandbox.claims import printable, read_answer
from rewards.sandbox.errors import SandboxError, SandboxUnavailable
from rewards.sandbox.jail import plain
from rewards.sandbox.jail.python_runner import find_function
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Compiled, Program
from rewards.sandbox.result import RunResult, Verdict

_ATTEMPTS, _PAUSE_S = 4, 0.5
_MAX_REPLY = 64 << 20
_PISTON_NAMES = {"cpp": "c++"}
_PROBE_BYTES = 20_000  # Piston cuts outputs at 1,024 bytes unless it is told otherwise


_CALLER = """
import json, sys, types
plain = types.ModuleType("plain")
exec(<plain>, plain.__dict__)
exec(<find>)
solution = types.ModuleType("solution")
sys.modules["solution"] = solution
request, marker = json.loads(sys.stdin.read()), <marker>
exec(compile(<program>, "main.py", "exec"), solution.__dict__)
try:
    args, kwargs = plain.from_json(request["args"]), plain.from_json(request["kwargs"])
    value = find_function(solution, request["call"])(*args, **kwargs)
    answer = {"value": json.loads(plain.encode(value))}
except plain.NotPlain as reason:
    answer = {"why": str(reason)}
except Exception as error:
    answer = {"raised": [type(error).__name__, str(error)[:500]]}
print("\\n" + marker + json.dumps(answer))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where and how."""

    url: str  # of the service, e.g. http://127.0.0.1:8080
    protocol: str = "sandboxfusion"  # or piston
    token: str | None = None


class RemoteSandbox:
    """`compile`, `execute` and `run` as in `Sandbox`.

    Raises SandboxUnavailable when the service does not pass a first test.
    """

    def __init__(self, service: Service, languages: tuple[str, ...] = ("python",)):
        if service.protocol not in ("sandboxfusion", "piston"):
            raise ValueError(f"protocol: {service.protocol!r} is not sandboxfusion or piston.")
        self.service, self.languages = service, languages
        self._versions: dict[str, str] = {}
        probe = self.run(Program("python", f"print(input() * {_PROBE_BYTES})"), b"x\n")
        if probe.failure is not None or probe.stdout.strip() != b"x" * _PROBE_BYTES:
            cut = f", {len(probe.stdout)} of {_PROBE_BYTES} bytes came back" if probe.failure is None else ""
            raise SandboxUnavailable(f"{service.url} does not run a short program: {probe.detail or 'output'}{cut}.")

    def run(self, program: Program, stdin: bytes = b"", limits: Limits | None = None) -> RunResult:
        with self.compile(program, limits) as compiled:
            return self.execute(compiled, stdin, limits)

    def compile(self, program: Program, limits: Limits | None = None) -> Compiled:
        """Nothing is kept over there: compiling happens with every run."""
        if program.language not in self.languages:
            raise SandboxError(f"This sandbox was made for {', '.join(self.languages)}, not for {program.language}.")
        size, allowed = len(program.source.encode(errors="replace")), (limits or Limits()).source_kb << 10
        too_long = RunResult(failure=Verdict.CE, detail=f"the source has {size} bytes, {allowed} are allowed")
        return Compiled(program, -1, too_long if size > allowed else None)

    def execute(self, compiled: Compiled, stdin: bytes = b"", limits: Limits | None = None) -> RunResult:
        limits = limits or Limits()
        if compiled.failure is not None:
            return compiled.failure
        sandboxfusion = self.service.protocol == "sandboxfusion"
        result = RunResult(failure=Verdict.IE, detail="not tried")
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S * 2**attempt)
            try:
                result = (self._fusion if sandboxfusion else self._piston)(compiled.program, stdin, limits)
            except Exception as error:  # network, HTTP 4xx and 5xx, odd replies
                result = RunResult(failure=Verdict.IE, detail=f"{self.service.url}: {type(error).__name__}: {error}")
            if result.failure is not Verdict.IE:
                break
        return result

    def close(self) -> None:
        """Nothing is held."""

    def _fusion(self, program: Program, stdin: bytes, limits: Limits) -> RunResult:
        request = {
            "code": program.source,
            "language": program.language,
            "stdin": stdin.decode(),
            "compile_timeout": 30,
            "run_timeout": limits.cpu_s,
            "memory_limit_MB": limits.memory_mb,
            "stdout_limit_kB": limits.stdout_kb,  # understood by our own server; others ignore it
            "files": {},
            "fetch_files": [],
        }
        reply = self._post("/run_code", request, 60 + 3 * limits.wall)
        if reply.get("status") not in ("Success", "Failed"):
            return RunResult(failure=Verdict.IE, detail=printable(str(reply.get("message", reply.get("status")))))
        compiled, ran = reply.get("compile_result"), reply.get("run_result")
        if ran is None:
            broken = compiled is not None and compiled.get("status") == "Finished"
            detail = printable(str((compiled or {}).get("stderr", "no run")))
            return RunResult(failure=Verdict.CE if broken else Verdict.IE, detail=detail)
        if ran.get("status") == "TimeLimitExceeded":
            return RunResult(failure=Verdict.TLE, detail="the time limit of the service")
        if ran.get("status") != "Finished":
            return RunResult(failure=Verdict.IE, detail=printable(str(ran.get("status"))))
        return _finished(ran.get("return_code"), ran, limits, ran.get("execution_time") or 0.0, ran.get("verdict"))

    def _piston(self, program: Program, stdin: bytes, limits: Limits) -> RunResult:
        request = {
            "language": _PISTON_NAMES.get(program.language, program.language),
            "version": "*",
            "files": [{"content": program.source}],
            "stdin": stdin.decode(),
            "run_timeout": int(1000 * limits.wall),
            "run_memory_limit": limits.memory_mb << 20,
        }
        reply = self._post("/api/v2/execute", request, 60 + 3 * limits.wall)
        compiled, ran = reply.get("compile"), reply.get("run")
        if compiled is not None and compiled.get("code") != 0:
            return RunResult(failure=Verdict.CE, detail=printable(str(compiled.get("stderr", ""))))
        if not isinstance(ran, dict) or ran.get("status") == "XX":  # XX: the service's own failure
            return RunResult(failure=Verdict.IE, detail=printable(str(reply.get("message", "no run"))))
        named = {"TO": Verdict.TLE, "OL": Verdict.OLE, "EL": Verdict.OLE}.get(str(ran.get("status")))
        return _finished(ran.get("code"), ran, limits, (ran.get("wall_time") or 0) / 1000, named)

    def _post(self, path: str, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.service.token:
            headers["Authorization"] = f"Bearer {self.service.token}"
        address = self.service.url.rstrip("/") + path
        message = urllib.request.Request(address, json.dumps(request).encode(), headers)
        try:
            with urllib.request.urlopen(message, timeout=timeout_s) as reply:
                body = reply.read(_MAX_REPLY + 1)
        except urllib.error.HTTPError as error:
            raise OSError(f"HTTP {error.code}: {error.read(300).decode(errors='replace')}") from None
        if len(body) > _MAX_REPLY:
            raise ValueError("the reply is too long")
        return json.loads(body)


def call_remote(
    box: RemoteSandbox, compiled: Compiled, request: str, limits: Limits
) -> tuple[RunResult, dict[str, Any] | None]:
    """Make one call of a Python program over there. The answer, None without a readable one, is a claim."""
    marker = secrets.token_hex(16)
    texts = {
        "plain": repr(inspect.getsource(plain)),
        "find": repr(inspect.getsource(find_function)),
        "program": repr(compiled.program.source),
        "marker": repr(marker),
    }
    source = _CALLER
    for name, text in texts.items():  # one after the other, so that a program's braces mean nothing
        source = source.replace(f"<{name}>", text, 1)
    # As input, since services bound the length of a source.
    result = box.execute(Compiled(Program("python", source), -1), request.encode(), limits)
    lines = [line for line in result.stdout.decode(errors="replace").splitlines() if line.startswith(marker)]
    return result, read_answer(lines[-1].removeprefix(marker)) if lines else None


def _finished(code: Any, ran: dict[str, Any], limits: Limits, wall_s: float, verdict: Any) -> RunResult:
    """`verdict`: a name for the failure, where the service gives one."""
    stdout, stderr = (str(ran.get(name) or "").encode(errors="surrogatepass") for name in ("stdout", "stderr"))
    failure = Verdict(verdict) if verdict in set(Verdict) else (None if code == 0 else Verdict.RE)
    if len(stdout) > limits.stdout_kb << 10:
        failure = Verdict.OLE
    return RunResult(
        failure=failure,
        detail="" if failure is None else f"exit code {code}",
        stdout=stdout[: limits.stdout_kb << 10],
        stderr=stderr[-(limits.stderr_kb << 10) :],
        exit_code=code if isinstance(code, int) and code >= 0 else None,
        wall_s=float(wall_s),
    )
