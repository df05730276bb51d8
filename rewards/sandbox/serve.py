"""Our sandbox for others, in SandboxFusion's wire format: POST /run_code, GET /v1/ping."""

import hmac
import ipaddress
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rewards.sandbox.errors import SandboxError
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox
from rewards.sandbox.result import RunResult, Verdict

_MAX_BODY = 48 << 20
_MAX_CPU_S = 300.0
_MAX_MEMORY_MB = 4096  # of one program: the clients must not be able to lift the limit of this machine
_MAX_STDOUT_KB = 16 << 10
_LEAST_TOKEN = 16


def make_server(box: Sandbox, host: str, port: int, token: str | None) -> ThreadingHTTPServer:
    """A server that is not running yet. Raises ValueError for an open address without a good token."""
    if token is not None and len(token) < _LEAST_TOKEN:
        raise ValueError(f"The token has {len(token)} characters; take at least {_LEAST_TOKEN}.")
    if token is None and not _is_loopback(host):
        raise ValueError(f"{host} can be reached by others: give a token (--token-file), or serve at 127.0.0.1.")

    class Handler(_Handler):
        sandbox, secret = box, token

    return ThreadingHTTPServer((host, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    sandbox: Sandbox
    secret: str | None
    timeout = 600

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v1/ping" else 404, "pong" if self.path == "/v1/ping" else "not found")

    def do_POST(self) -> None:
        if not self._allowed():
            self._answer(401, {"detail": "the token is missing or wrong"})
            return
        if self.path != "/run_code":
            self._answer(404, {"detail": "not found"})
            return
        try:
            size = int(self.headers.get("Content-Length", ""))
            if not 0 <= size <= _MAX_BODY:
                raise ValueError(f"the body must have at most {_MAX_BODY} bytes")
            program, stdin, limits = read_request(json.loads(self.rfile.read(size)))
            if program.language not in self.sandbox.languages:
                raise ValueError(f"languages here are {', '.join(self.sandbox.languages)}")
        except (ValueError, TypeError, RecursionError, OverflowError) as error:
            self._answer(422, {"detail": str(error)[:500]})
            return
        try:
            self._answer(200, write_response(*_run(self.sandbox, program, stdin, limits)))
        except SandboxError as error:
            self._answer(200, {"status": "SandboxError", "message": str(error)})

    def _allowed(self) -> bool:
        """Browsers of this machine are kept out, too: they always name their own host or origin."""
        if self.headers.get("Origin") is not None:
            return False
        if self.secret is None:
            return True
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.secret.encode())

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: what is served are a model's programs, thousands an hour."""


def read_request(body: Any) -> tuple[Program, bytes, Limits]:
    """Raises ValueError or TypeError for a request that cannot be served as it asks."""
    if not isinstance(body, dict) or not isinstance(body.get("code"), str):
        raise ValueError("code must be a string")
    if body.get("files") or body.get("fetch_files"):
        raise ValueError("files and fetch_files are not supported")
    cpu_s = float(body.get("run_timeout") or 10)
    if not 0 < cpu_s <= _MAX_CPU_S:
        raise ValueError(f"run_timeout must be over 0 and at most {_MAX_CPU_S:.0f} seconds")
    memory_mb = _at_most(_MAX_MEMORY_MB, body, "memory_limit_MB", Limits().memory_mb)
    stdout_kb = _at_most(_MAX_STDOUT_KB, body, "stdout_limit_kB", Limits().stdout_kb)
    stdin = str(body.get("stdin") or "").encode()
    if len(stdin) > Limits().stdin_mb << 20:
        raise ValueError(f"stdin must have at most {Limits().stdin_mb} MiB")
    limits = Limits(cpu_s=cpu_s, memory_mb=memory_mb, stdout_kb=stdout_kb)
    return Program(str(body.get("language", "python")), body["code"]), stdin, limits


def _at_most(most: int, body: dict[str, Any], key: str, default: int) -> int:
    """An optional number of a request; SandboxFusion's clients say -1 for the default."""
    number = int(body.get(key) or -1)
    if number > most:
        raise ValueError(f"{key} must be at most {most}")
    return number if number > 0 else default


def write_response(compiled: RunResult | None, ran: RunResult | None) -> dict[str, Any]:
    """SandboxFusion's answer: Success only for exit code 0 within all limits, SandboxError when it is our fault."""
    last = ran or compiled
    failed = last is not None and last.failure is not None
    status = "SandboxError" if last is not None and last.failure is Verdict.IE else ("Failed" if failed else "Success")
    return {
        "status": status,
        "message": last.detail if last else "",
        "compile_result": _command(compiled),
        "run_result": _command(ran),
        "executor_pod_name": None,
        "files": {},
    }


def _run(box: Sandbox, program: Program, stdin: bytes, limits: Limits) -> tuple[RunResult | None, RunResult | None]:
    with box.compile(program, limits) as compiled:
        if compiled.failure is not None:
            return compiled.failure, None
        result = box.execute(compiled, stdin, limits)
    return (result, None) if result.failure is Verdict.CE and program.language != "python" else (None, result)


def _command(result: RunResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    late = result.failure is Verdict.TLE
    return {
        "status": "TimeLimitExceeded" if late else ("Error" if result.failure is Verdict.IE else "Finished"),
        "execution_time": result.wall_s,
        "return_code": None if late else _return_code(result),
        "stdout": result.stdout.decode(errors="replace"),
        "stderr": result.stderr.decode(errors="replace") or result.detail,
        "verdict": result.failure,  # ours, besides SandboxFusion's keys
    }


def _return_code(result: RunResult) -> int:
    """Never 0 for a failure, e.g. for too much output."""
    code = -result.signal if result.signal is not None else result.exit_code
    return code or (0 if result.failure is None else 1)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
