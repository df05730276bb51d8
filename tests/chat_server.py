"""A server of OpenAI's chat API that says what a test wants."""

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """`reply`: (number of the request from 1, its body) -> (status, text, headers...). In place of a text a list of
    texts and of seconds to wait, which is sent piece by piece."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.asked = reply, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers.get("Authorization"), body))
        status, answer, *headers = self.server.reply(len(self.server.asked), body)
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # whoever asked has given up
            for piece in answer if isinstance(answer, list) else [answer]:
                time.sleep(piece) if isinstance(piece, float) else self.wfile.write(piece.encode())

    def log_message(self, *_): ...


def said(text, finish="stop"):
    message = {"role": "assistant", "content": text}
    return 200, json.dumps({"choices": [{"message": message, "finish_reason": finish}]})
