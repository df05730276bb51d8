"""Servers on loopback: one of OpenAI's chat API that says what a test wants."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LoopbackServer(ThreadingHTTPServer):
    """Answers in threads of its own from now on; `url` has no path."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """A client that hangs up is no error, and its traceback would be taken for the output of what a test runs."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Server(LoopbackServer):
    """`reply`: (number of the request from 1, its body) -> (status, text, headers...). In place of a text a list of
    texts and of seconds to wait, which is sent piece by piece."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []
        super().__init__(Handler)
        self.url += "/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, answer, *headers = self.server.reply(len(self.server.asked), body)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        for piece in answer if isinstance(answer, list) else [answer]:
            time.sleep(piece) if isinstance(piece, float) else self.wfile.write(piece.encode())

    def log_message(self, *_): ...


def said(text, reasoning=None, finish="stop"):
    message = {"role": "assistant", "content": text, "reasoning_content": reasoning}
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": finish}]})
