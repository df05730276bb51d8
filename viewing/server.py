"""The server behind `r1 view`: the files of the page, and what it asks for as JSON. It writes nothing."""

import json
import math
from collections.abc import Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any
from urllib.parse import parse_qs, urlsplit

from viewing.access import Access
from viewing.answers import Answers, BadRequest

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # systems differ in theirs
_PLOTLY = "plotly.min.js"


def make_server(answers: Answers, access: Access, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens and is not running yet. Raises OSError when it cannot listen there."""

    class Server(ThreadingHTTPServer):
        address_family = AF_INET6 if ":" in host else AF_INET
        daemon_threads = True

    return Server((host, port), partial(_Handler, answers, access, _page_files()))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def __init__(self, answers: Answers, access: Access, page: Mapping[str, bytes], *args: Any) -> None:
        self._answers, self._access, self._page = answers, access, page
        super().__init__(*args)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        token = query.pop("token", [""])[0]
        if refused := self._access.refusal(self.headers, token):  # type: ignore[arg-type]
            self._send(refused[0], "text/plain; charset=utf-8", refused[1].encode())
        elif self._access.is_token(token):  # keep it out of the address bar, and of what is copied from there
            self._send(303, "text/plain", b"", {"Location": url.path or "/", "Set-Cookie": self._access.cookie()})
        elif url.path.startswith("/api/"):
            self._send_answer(url.path.removeprefix("/api/"), query)
        else:
            self._send_file(url.path.removeprefix("/") or "index.html")

    def _send_answer(self, name: str, query: dict[str, list[str]]) -> None:
        try:
            status, answer = 200, self._answers.answer(name, query)
        except BadRequest as error:
            status, answer = error.status, {"error": str(error)}
        except Exception as error:  # e.g. a file that is half written: the page says so and asks again
            status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
        text = json.dumps(_finite(answer), ensure_ascii=False, allow_nan=False)
        body = text.encode("utf-8", errors="backslashreplace")
        self._send(status, "application/json", body, {"Cache-Control": "no-store"})

    def _send_file(self, name: str) -> None:
        if name not in self._page:  # names are looked up: no path of a request touches the disk
            self._send(404, "text/plain", b"not found")
            return
        kind = _KINDS[Path(name).suffix]
        keep = {"Cache-Control": "max-age=86400" if name == _PLOTLY else "no-cache"}
        self._send(200, f"{kind}; charset=utf-8", self._page[name], keep)

    def _send(self, status: int, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "r1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the page asks every few seconds, and addresses may hold the token."""


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinities: null."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page_files() -> dict[str, bytes]:
    """Name -> content of the files of the page."""
    page = {file.name: file.read_bytes() for file in files("viewing").joinpath("page").iterdir() if file.is_file()}
    return page | {_PLOTLY: files("plotly").joinpath("package_data", _PLOTLY).read_bytes()}
