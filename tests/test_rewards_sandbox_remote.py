"""The same judge over HTTP: what our server answers, and what a service's failures become."""

import json
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rewards.sandbox import remote
from rewards.sandbox.errors import SandboxUnavailable
from rewards.sandbox.judge import CallTest, StdioTest, UnitTest, judge
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox
from rewards.sandbox.remote import RemoteSandbox, Service
from rewards.sandbox.serve import make_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")

TOKEN = "0123456789abcdef-token"
LIMITS = Limits(cpu_s=1.0, wall_s=4.0)


def started(server: ThreadingHTTPServer) -> str:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def url():
    with Sandbox(workers=1) as box, make_server(box, "127.0.0.1", 0, TOKEN) as server:
        yield started(server)
        server.shutdown()


@pytest.fixture(scope="module")
def box(url):
    return RemoteSandbox(Service(url=url, token=TOKEN))


def post(url: str, body: object, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(url + "/run_code", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("source", "verdict"),
    [
        ("print(int(input()) * 2)", "AC"),
        ("print(1)", "WA"),
        ("1 / 0", "RE"),
        ("while True: pass", "TLE"),
        ("while True: print('x' * 1000)", "OLE"),
        ("def f(:", "CE"),
        ("import os\nos._exit(0)", "WA"),
    ],
)
def test_verdicts_over_http_are_those_of_the_sandbox(box, source, verdict):
    assert judge(box, Program("python", source), [StdioTest("21\n", "42")], limits=LIMITS).verdict == verdict


def test_long_arguments_go_over_http(box):
    test = CallTest("f", ("x" * (3 << 20),), 3 << 20)
    assert judge(box, Program("python", "def f(text): return len(text)"), [test]).verdict == "AC"


def test_calls_over_http(box):
    source = "def f(x):\n    print('noise {}')\n    return {'x': (x, {x})}"
    assert judge(box, Program("python", source), [CallTest("f", (1,), {"x": [1, {1}]})]).verdict == "AC"
    lying = "class E:\n    def __eq__(self, other): return True\ndef f(x): return E()"
    assert judge(box, Program("python", lying), [CallTest("f", (1,), 1)]).verdict == "RE"
    assert judge(box, Program("python", "import os\ndef f(x): os._exit(0)"), [CallTest("f", (1,), 1)]).verdict == "WA"


def test_long_expected_outputs_have_room_over_http(box):
    test = StdioTest("", "x" * 1_600_000)
    assert judge(box, Program("python", "print('x' * 1600000)"), [test], limits=LIMITS).verdict == "AC"


@pytest.mark.parametrize(
    "claim", ['{"value": {"complex": [' + "9" * 1000 + ", 0]}}", '{"value": 1, "raised": 3}', "[" * 60_000]
)
def test_hostile_claims_over_http_are_verdicts(box, claim):
    source = "import os, sys\ndef f(x):\n    marker = sys.modules['__main__'].marker\n"
    source += f"    print('\\n' + marker + {claim!r}, flush=True)\n    os._exit(0)"
    assert judge(box, Program("python", source), [CallTest("f", (1,), 1)]).verdict in ("WA", "RE")


def test_methods_are_called_over_http(box):
    source = "class Solution:\n    def f(self, x): return x + 1"
    assert judge(box, Program("python", source), [CallTest("Solution.f", (1,), 2)]).verdict == "AC"


def test_unit_tests_over_http_are_refused_and_not_failed(box):
    assert judge(box, Program("python", "def f(): return 1"), [UnitTest("assert f() == 1")]).verdict == "IE"


def test_the_server_speaks_sandboxfusion(url):
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    status, reply = post(url, {"code": "print(input())", "language": "python", "stdin": "hi"}, **bearer)
    assert (status, reply["status"], reply["run_result"]["stdout"]) == (200, "Success", "hi\n")
    assert reply["run_result"]["status"] == "Finished" and reply["run_result"]["return_code"] == 0
    _, reply = post(url, {"code": "while True: pass", "language": "python", "run_timeout": 0.2}, **bearer)
    assert (reply["status"], reply["run_result"]["status"]) == ("Failed", "TimeLimitExceeded")
    numbers = [("run_timeout", 1e9), ("run_timeout", 10**400), ("memory_limit_MB", float("inf"))]
    numbers += [("memory_limit_MB", 1_000_000), ("stdout_limit_kB", 1 << 30)]
    wrong = [{"language": "python"}, {"code": "", "language": "cobol"}, []]
    wrong += [{"code": "", key: number} for key, number in numbers]
    for request in wrong:
        assert post(url, request, **bearer)[0] == 422, request


def test_the_server_wants_its_token(url):
    assert post(url, {"code": ""})[0] == 401
    assert post(url, {"code": ""}, Authorization="Bearer wrong")[0] == 401
    assert post(url, {"code": ""}, Authorization=f"Bearer {TOKEN}", Origin="http://evil.example")[0] == 401


@pytest.mark.parametrize(("host", "token", "message"), [("0.0.0.0", None, "token"), ("127.0.0.1", "short", "16")])
def test_open_addresses_and_short_tokens_are_refused(host, token, message):
    with pytest.raises(ValueError, match=message):
        make_server(None, host, 0, token)  # type: ignore[arg-type]


class FakeService(BaseHTTPRequestHandler):
    replies: list  # (status, content) in turn; the last one again and again
    seen: list

    def do_POST(self) -> None:
        self.seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, content = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        content = content(self.seen[-1]) if callable(content) else content
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def fake(monkeypatch, *replies) -> tuple[str, list]:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)
    handler = type("Handler", (FakeService,), {"replies": list(replies), "seen": []})
    return started(ThreadingHTTPServer(("127.0.0.1", 0), handler)), handler.seen


def fusion(stdout: str, **keys) -> dict:
    ran = {"status": "Finished", "return_code": 0, "stdout": stdout, "stderr": "", "execution_time": 0.1, **keys}
    return {"status": "Success", "compile_result": None, "run_result": ran}


WORKS = (200, fusion("x" * 20_000 + "\n"))


@pytest.mark.parametrize(
    "failure",
    [(500, {}), (504, {}), (200, {"status": "SandboxError", "message": "m"}), (200, []), (200, {"status": "Success"})],
)
def test_a_failing_service_is_an_internal_error(monkeypatch, failure):
    address, _ = fake(monkeypatch, WORKS, failure)
    assert judge(RemoteSandbox(Service(url=address)), Program("python", ""), [StdioTest("", "")]).verdict == "IE"


def test_a_busy_service_is_asked_again(monkeypatch):
    address, seen = fake(monkeypatch, WORKS, (503, {}), (503, {}), (200, fusion("42")))
    result = judge(RemoteSandbox(Service(url=address)), Program("python", "p"), [StdioTest("in", "42")])
    assert result.verdict == "AC" and len(seen) == 4


def test_expected_outputs_are_never_sent(monkeypatch):
    address, seen = fake(monkeypatch, WORKS, (200, fusion("42")))
    judge(
        RemoteSandbox(Service(url=address)),
        Program("python", "p"),
        [StdioTest("in", "SECRET"), CallTest("f", (), "SECRET")],
    )
    assert "SECRET" not in json.dumps(seen)


def test_piston(monkeypatch):
    def ran(**keys):
        return 200, {"run": {"stdout": "", "stderr": "", "code": 0, "signal": None, "status": None, **keys}}

    address, seen = fake(
        monkeypatch, ran(stdout="x" * 20_000), ran(stdout="42"), ran(code=None, status="TO"), ran(status="XX")
    )
    box = RemoteSandbox(Service(url=address, protocol="piston"))
    verdicts = [judge(box, Program("python", "p"), [StdioTest("in", "42")]).verdict.value for _ in range(3)]
    assert verdicts == ["AC", "TLE", "IE"]
    assert seen[1]["files"] == [{"content": "p"}] and seen[1]["stdin"] == "in"


def test_a_service_that_cuts_outputs_is_refused(monkeypatch):
    address, _ = fake(monkeypatch, (200, {"run": {"stdout": "x" * 1024, "stderr": "", "code": 0}}))
    with pytest.raises(SandboxUnavailable, match="1024 of 20000 bytes"):
        RemoteSandbox(Service(url=address, protocol="piston"))
