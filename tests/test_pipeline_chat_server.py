"""`r1 chat URL`: what is shown while an answer streams, and one sentence for whatever a server may do wrong."""

import io
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from pipeline import chat_server
from pipeline.chat_command import _print_completion, _print_stream, chat
from pipeline.cli import plain_errors
from tests.chat_server import LoopbackServer

app = typer.Typer()
app.command()(plain_errors()(chat))


class FakeServer(LoopbackServer):
    """Answers with `models` and `answer`, each (status, body or pieces of it); keeps what was asked."""

    def __init__(self):
        super().__init__(FakeHandler)
        self.models = 200, json.dumps({"data": [{"id": "zero", "max_model_len": 512}]})
        self.answer = 200, events({"content": "7"}, finish="stop")
        self.asked, self.headers = [], []


class FakeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(*(self.server.models if self.path == "/v1/models" else (404, "{}")))

    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.server.headers.append(self.headers)
        self.reply(*self.server.answer)

    def reply(self, status, body):
        self.send_response(status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in [body] if isinstance(body, str) else body:
            time.sleep(piece) if isinstance(piece, float) else self.chunk(piece.encode())
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *_): ...


def events(*deltas, finish="stop", end="data: [DONE]\n\n"):
    choices = [{"delta": delta} for delta in deltas] + [{"delta": {}, "finish_reason": finish}]
    return [": a comment\n\n", *(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices), end]


@pytest.fixture
def server():
    with FakeServer() as server:
        yield server
        server.shutdown()


def ask(url, *options, questions="3 + 4?\n"):
    result = CliRunner().invoke(app, [url, *options], input=questions)
    assert "Traceback" not in result.output
    return result


def test_an_answer_streams_in_parts_and_sampling_is_passed_on(server):
    server.answer = (
        200,
        events({"reasoning": "\n3 + 4"}, {"reasoning": " = 7\n"}, {"content": "\n\nIt is "}, {"content": "7."}),
    )
    result = ask(server.url + "/v1/", "--temperature", "0.5", "--seed", "3", questions="3 + 4?\n\n5?\n")
    assert (result.exit_code, result.stdout) == (0, "3 + 4 = 7\nIt is 7.\n" * 2)
    assert [(body["messages"][0]["content"], body["seed"]) for body in server.asked] == [("3 + 4?", 3), ("5?", 4)]
    sent = {key: server.asked[0][key] for key in ("model", "temperature", "top_p", "max_tokens", "stream")}
    assert sent == {"model": "zero", "temperature": 0.5, "top_p": 0.95, "max_tokens": 512, "stream": True}


def test_the_older_name_of_reasoning_and_the_length_limit_are_understood(server):
    server.answer = 200, events({"reasoning_content": "so"}, {"content": "7"}, finish="length")
    assert ask(server.url).stdout == "so\n7\n(cut off)\n"
    server.answer = 200, events(finish="length")
    assert ask(server.url).stdout == "(cut off)\n"


def test_a_key_is_sent_only_when_it_is_set(server, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    ask(server.url)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    ask(server.url)
    assert [headers["Authorization"] for headers in server.headers] == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("models", "answer", "code", "sentence"),
    [
        ((404, '{"detail": "Not Found"}'), None, 1, "URL has no OpenAI API: Not Found"),
        ((200, "<html>"), None, 1, "URL lists no model, so it does not speak OpenAI's API"),
        ((200, '{"data": []}'), None, 1, "URL lists no model, so it does not speak OpenAI's API"),
        ((401, '{"error": "Unauthorized"}'), None, 1, "URL wants its key in the environment variable VLLM_API_KEY"),
        ((302, ""), None, 1, "URL failed with status 302: Found"),
        ((400, ""), None, 1, "URL failed with status 400: Bad Request"),
        (None, (500, '{"error": {"message": "the engine\\u001b[2J died"}}'), 1, "status 500: the engine[2J died"),
        (None, (400, '{"error": {"message": "too long\\u001b[2J"}}'), 0, "too long[2J"),
        (None, (200, events({"content": "7"}, end="")), 1, "URL closed the connection in the middle of an answer"),
        (None, (200, ['data: {"error": {"message": "died"}}\n\n']), 1, "URL gave up: died"),
        (None, (200, ["data: 7\n\n"]), 1, "URL sent something that is not an event of OpenAI's API"),
        (None, (200, ["data: " + "[" * 100_000 + "\n\n"]), 1, "URL sent something that is not an event"),
        (None, (200, ["x" * 3_000_000]), 1, "URL closed the connection in the middle of an answer"),
    ],
)
def test_whatever_a_server_does_wrong_is_one_sentence(server, models, answer, code, sentence):
    server.models, server.answer = models or server.models, answer or server.answer
    result = ask(server.url)
    lines = result.stderr.splitlines()  # threads of earlier tests in this process may write there too
    assert sum(sentence.replace("URL", server.url) in line for line in lines) == 1, lines
    assert result.exit_code == code


def test_the_next_question_is_asked_after_one_that_was_refused(server):
    server.answer = 400, '{"message": "too long"}'
    result = ask(server.url, questions="a\nb\n")
    assert (result.exit_code, result.stderr, result.stdout) == (0, "too long\ntoo long\n", "")


def test_silence_ends_after_a_while(server, monkeypatch):
    monkeypatch.setattr(chat_server, "SILENCE_S", 0.3)
    server.answer = 200, [*events({"content": "It is"})[:2], 2.0]
    result = ask(server.url)
    assert (result.exit_code, result.stdout) == (1, "It is\n")
    assert result.stderr == f"{server.url} does not answer in time\n"


def test_what_is_no_http_is_one_sentence_without_control_characters():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def speak():
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"SSH-2.0\x1b[2J\r\n")

        threading.Thread(target=speak, daemon=True).start()
        result = ask(url)
    assert (result.exit_code, result.stderr) == (1, f"{url}: SSH-2.0[2J\n")


def test_no_server_and_a_bad_address_are_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    result = ask(url)
    assert result.exit_code == 1 and result.stderr.startswith(f"nothing answers at {url}; r1 serve")
    for bad in ("http://", "http://:80", "http://host:port", "http://[::1"):
        result = ask(bad)
        assert result.exit_code == 2 and "is not a web address" in result.stderr
    for unknown in ("http://host" + "t" * 80, "http://127.0.0.1:9/é", "http://127.0.0.1:9/a b"):
        assert ask(unknown).exit_code == 1
    result = ask("http://127.0.0.1:9", "--template", "plain")
    assert result.exit_code == 2 and "the template is the server's" in result.stderr


# --- what a terminal gets ------------------------------------------------------------------------------------------


def shown(show, *arguments, **options) -> str:
    with io.StringIO() as file:
        show(Console(file=file, highlight=False, soft_wrap=True, **options), *arguments)
        return file.getvalue()


words = st.text(alphabet="ab <>/answer\n计\x1b[\x07\u202e\U000e0001", max_size=10)


@given(reasoning=words, final=words, tagged=st.booleans(), data=st.data())
def test_a_stream_shows_what_the_whole_completion_shows(reasoning, final, tagged, data):
    """Wherever the pieces are cut. Tabs apart, which rich expands from the start of each piece."""
    final = f"x{final}x".replace("<answer>", "").replace("</answer>", "")
    content = f"\n<answer>{final}</answer>\n" if tagged else f"\n{final}\n"
    stream = [
        (part, text[a:b])
        for part, text in (("reasoning", f"\nr{reasoning}r\n"), ("content", content))
        for cuts in [sorted(data.draw(st.sets(st.integers(1, len(text)), max_size=6)))]
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    whole = shown(_print_completion, f"<think>\nr{reasoning}r\n</think>{content}")
    assert shown(_print_stream, stream) == whole


def test_reasoning_is_dim_and_the_answer_bold():
    terminal = {"force_terminal": True, "color_system": "standard"}
    out = shown(_print_stream, [("reasoning", "so"), ("content", "7")], **terminal)
    assert out == "\x1b[2mso\x1b[0m\n\x1b[1m7\x1b[0m\n"
    assert shown(_print_stream, [("content", "7")], **terminal) == "7\n"


def test_a_control_sequence_in_pieces_does_not_come_together():
    pieces = ["\x1b", "[2J", "\x9b", "31m", "\x1b]0;", "title", "\x07", "\ud83d", "\ude00", "\x1b[?10", "49h", "[bold]"]
    out = shown(_print_stream, [("content", piece) for piece in pieces])
    assert out == "[2J31m]0;title[?1049h[bold]\n"


def test_what_only_looks_like_a_tag_at_the_end_is_shown():
    assert shown(_print_stream, [("content", "1 <"), ("content", " 2 </ans")]) == "1 < 2 </ans\n"
