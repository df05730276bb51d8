"""A client of OpenAI's chat API as far as `r1 chat` needs it: a question, its answer as a stream, deadlines everywhere.

What a server sends is untrusted: its errors are safe to print, of its answers whoever prints them takes care.
"""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.errors import RecipeError, printable
from training.stage import StageError

CONNECT_S = 10
SILENCE_S = 300  # between two pieces: a long prompt, or a queue
_LONGEST_LINE = 1 << 20  # bytes

Part = Literal["reasoning", "content", "cut off"]


class ChatServer:
    """The first model of the server at `url`. Raises RecipeError for a bad address, StageError when it cannot serve."""

    def __init__(self, url: str):
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host = ""
        if not self._host:
            raise RecipeError(f"{url} is not a web address, such as http://127.0.0.1:8000")
        self.url = url
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._port = self._port or self._connection.default_port
        self._path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/"
        with self._request("GET", "models") as response:
            models = _field(_json(response.read(_LONGEST_LINE)), "data", 0)
        self.model, self._longest = _field(models, "id"), _field(models, "max_model_len")
        if not isinstance(self.model, str):
            raise StageError(f"{url} lists no model, so it does not speak OpenAI's API")

    def ask(self, question: str, *, max_new_tokens: int, **sampling: float) -> Iterator[tuple[Part, str]]:
        """The answer piece by piece. Raises ValueError for a question that the server refuses."""
        if isinstance(self._longest, int):  # vLLM refuses to be asked for more than the whole context
            max_new_tokens = min(max_new_tokens, self._longest)
        body = {
            "model": self.model, "messages": [{"role": "user", "content": question}], "stream": True,
            "max_tokens": max_new_tokens, **sampling,
        }  # fmt: skip
        with self._request("POST", "chat/completions", body) as response:
            for event in self._events(response):
                if "error" in event:
                    raise StageError(f"{self.url} gave up: {_reason(event)}")
                delta = _field(event, "choices", 0, "delta")
                if reasoning := _field(delta, "reasoning") or _field(delta, "reasoning_content"):  # new and old name
                    yield "reasoning", str(reasoning)
                if content := _field(delta, "content"):
                    yield "content", str(content)
                if _field(event, "choices", 0, "finish_reason") == "length":
                    yield "cut off", ""

    def _events(self, response: HTTPResponse) -> Iterator[dict[str, Any]]:
        """The events of a stream up to its end mark."""
        while line := response.readline(_LONGEST_LINE):
            name, _, data = line.partition(b":")
            if name == b"data" and data.strip() == b"[DONE]":
                return
            if name == b"data":
                event = _json(data)
                if not isinstance(event, dict):
                    raise StageError(f"{self.url} sent something that is not an event of OpenAI's API")
                yield event
        raise StageError(f"{self.url} closed the connection in the middle of an answer")

    @contextmanager
    def _request(self, method: str, path: str, body: Any = None) -> Iterator[HTTPResponse]:
        """The response to one request, on a connection of its own. Whatever goes wrong is one sentence."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):  # vLLM's server reads its key there too
            headers["Authorization"] = f"Bearer {key}"
        try:
            with closing(self._connection(self._host, self._port, timeout=CONNECT_S)) as connection:
                connection.connect()
                connection.sock.settimeout(SILENCE_S)
                connection.request(method, self._path + path, json.dumps(body) if body else None, headers)
                response = connection.getresponse()
                if response.status != 200:
                    self._refuse(response, asked=bool(body))
                yield response
        except ConnectionRefusedError:
            raise StageError(
                f"nothing answers at {self.url}; r1 serve CHECKPOINT starts a server, which loads for a minute or more"
            ) from None
        except TimeoutError:
            raise StageError(f"{self.url} does not answer in time") from None
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: of an address
            raise StageError(f"{self.url}: {_sentence(error) or type(error).__name__}") from None

    def _refuse(self, response: HTTPResponse, asked: bool) -> None:
        """Raise for a response that is none: ValueError when another question may do better."""
        reason = _reason(_json(response.read(_LONGEST_LINE))) or _sentence(response.reason)
        if asked and response.status in (400, 413, 422):
            raise ValueError(reason)
        if response.status in (401, 403):
            raise StageError(f"{self.url} wants its key in the environment variable VLLM_API_KEY: {reason}")
        if response.status == 404:
            raise StageError(f"{self.url} has no OpenAI API: {reason}")
        raise StageError(f"{self.url} failed with status {response.status}: {reason}")


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _field(value: Any, *keys: str | int) -> Any:
    """A field deep inside of decoded JSON, None where there is none."""
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _reason(answer: Any) -> str:
    """What an error response says: OpenAI's form, the older form of vLLM, FastAPI's."""
    found = _field(answer, "error", "message") or _field(answer, "error") or _field(answer, "message")
    return _sentence(found or _field(answer, "detail") or "")


def _sentence(said: Any) -> str:
    """On one line and of some length, safe to print."""
    return " ".join(printable(str(said)).split())[:500]
