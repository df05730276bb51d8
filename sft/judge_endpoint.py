"""A client of OpenAI's chat API for judges: one question, one whole answer within a deadline. Standard library alone.

Redirects are not followed, so that a key reaches nobody but the server that was named.
"""

import json
import os
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from sft.preference_config import EndpointConfig
from training.stage import StageError

_LONGEST_ANSWER = 4 << 20  # bytes
_PIECE = 1 << 16
_CUT_OFF = ("length", "content_filter")  # finish reasons of answers that are not whole


class Endpoint:
    """Raises StageError when the environment variable that should hold the key is not set."""

    def __init__(self, config: EndpointConfig):
        self.config = config
        parts = urlsplit(config.url)
        self._address = parts.hostname or "", parts.port
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._headers = {"Content-Type": "application/json"} | self._authorization()

    def complete(self, messages: list[dict[str, str]], temperature: float | None = None) -> tuple[str, bool]:
        """The answer to a conversation, and whether it was cut off; `temperature` None takes the configured one. Safe
        for several threads.

        Raises TimeoutError when it is not there by the deadline, ConnectionError when the server is away, overloaded or
        broken, ValueError when it refuses the question, StageError when no question can succeed.
        """
        config, end = self.config, time.monotonic() + self.config.deadline_s
        body = {
            "model": config.model, "messages": messages, "max_tokens": config.max_tokens,
            "temperature": config.temperature if temperature is None else temperature,
        }  # fmt: skip
        try:
            with closing(self._connection(*self._address, timeout=config.deadline_s)) as connection:
                connection.request("POST", self._path, json.dumps(body), self._headers)
                response = connection.getresponse()
                content = _read(response, connection, end)
        except TimeoutError:
            raise TimeoutError(f"no answer within {config.deadline_s:g} s") from None
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"{config.url}: {type(error).__name__}: {error}") from None
        if response.status != 200:
            self._refuse(response.status, content)
        return _text_of(content)

    def _authorization(self) -> dict[str, str]:
        name = self.config.api_key_env
        if name is None:
            return {}
        if not os.environ.get(name):
            raise StageError(
                f"judge: the environment variable {name} (endpoint.api_key_env) is not set; export the key"
            )
        return {"Authorization": f"Bearer {os.environ[name]}"}

    def _refuse(self, status: int, content: bytes) -> None:
        said = " ".join(content[:300].decode(errors="replace").split())
        if status in (401, 403, 404):
            hint = {404: "has it endpoint.url and endpoint.model?"}.get(
                status, "does endpoint.api_key_env name its key?"
            )
            raise StageError(f"judge: {self.config.url} answers with status {status}; {hint} ({said})")
        if status in (408, 429) or status >= 500:
            raise ConnectionError(f"{self.config.url}: status {status}: {said}")
        raise ValueError(f"status {status}: {said}")


def _read(response: HTTPResponse, connection: HTTPConnection, end: float) -> bytes:
    """All of a response. A server that sends byte by byte has no more time than another, but for its last silence."""
    content = b""
    while piece := response.read1(_PIECE):
        content += piece
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if len(content) > _LONGEST_ANSWER:
            raise HTTPException(f"more than {_LONGEST_ANSWER} bytes")
        if connection.sock is not None:
            connection.sock.settimeout(left)
    return content


def _text_of(content: bytes) -> tuple[str, bool]:
    """The assistant's message, and whether it was cut off; "", which holds no verdict, where the answer is none of
    OpenAI's API."""
    try:
        answer: Any = json.loads(content)
        choice = answer["choices"][0]
        text, cut_off = choice["message"]["content"], choice.get("finish_reason") in _CUT_OFF
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", False
    return (text, cut_off) if isinstance(text, str) else ("", False)
