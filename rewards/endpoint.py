"""A client of OpenAI's chat API, for judges and teachers: one whole answer within a deadline. Standard library alone.

Redirects are not followed, so that a key reaches nobody but the server that was named.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from data.errors import StageError
from rewards.endpoint_config import EndpointConfig, ServerConfig

_LONGEST_ANSWER = 4 << 20  # bytes
_PIECE = 1 << 16
_CUT_OFF = ("length", "content_filter")  # finish reasons of answers that are not whole
_SHORTEST_PAUSE_S = 1.0  # a server that says "Retry-After: 0" is not asked in a tight loop
_SAID = 300  # characters of an error that are kept
_HEADER_TEXT = re.compile(r"[\x20-\x7e\xa0-\xff]+")  # latin-1 without control characters


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. All of it is "" where the server sent none of OpenAI's API."""

    content: str = ""
    reasoning: str = ""  # where the server parts it from the content (reasoning_content, in newer vLLM reasoning)
    cut_off: bool = False


class ChatEndpoint:
    """Raises StageError when the environment variable that should hold the key is not set, or holds no key."""

    def __init__(self, config: ServerConfig, who: str = "judge"):
        """`who`: the part of the recipe that asks, for messages."""
        self.server, self._who = config, who
        parts = urlsplit(config.url)
        self._address = parts.hostname or "", parts.port
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = _key(config.api_key_env, who)
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"

    def ask(
        self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any], end: float = float("inf")
    ) -> Reply:
        """The answer to a conversation; `options` are further keys of the request. Safe for several threads.
        end: of the time (time.monotonic) for it, where the server's own deadline is later.

        A busy server that says when to come back (Retry-After) is asked again then, if that is before the deadline.

        Raises TimeoutError when it is not there by the deadline, ConnectionError when the server is away, overloaded or
        broken, ValueError when it refuses the question, StageError when no question can succeed.
        """
        end = min(end, time.monotonic() + self.server.deadline_s)
        body = {"model": self.server.model, "messages": [*map(dict, messages)], **options}
        while True:
            response, content = self._post(json.dumps(body), end)
            pause = _pause(response)
            if pause is None or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        if response.status != 200:
            self._refuse(response.status, content)
        return self._reply_of(content)

    def _post(self, body: str, end: float) -> tuple[HTTPResponse, bytes]:
        """One request: the response, and all of its content."""
        try:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            with closing(self._connection(*self._address, timeout=left)) as connection:
                connection.request("POST", self._path, body, self._headers)
                response = connection.getresponse()
                return response, _read(response, connection, end)
        except TimeoutError:
            raise TimeoutError(f"no answer within {self.server.deadline_s:g} s") from None
        except (OSError, HTTPException) as error:
            raise self._broken(f"{type(error).__name__}: {error}") from None

    def _refuse(self, status: int, content: bytes) -> None:
        said = self._quoted(content.decode(errors="replace"))
        if status in (401, 403, 404):
            hint = {404: "has it endpoint.url and endpoint.model?"}.get(
                status, "does endpoint.api_key_env name its key?"
            )
            raise StageError(f"{self._who}: {self.server.url} answers with status {status}; {hint} ({said})")
        if status in (408, 429) or status >= 500:
            raise self._broken(f"status {status}: {said}")
        raise ValueError(f"status {status}: {said}")

    def _reply_of(self, content: bytes) -> Reply:
        """Raises ConnectionError for an error that a gateway sends with status 200, for the whole or for its one
        choice."""
        try:
            answer: Any = json.loads(content)
            error = answer.get("error") or answer["choices"][0].get("error")
            choice = {} if error else answer["choices"][0]
            message = {} if error else choice["message"]
            text = message.get("content")
            reasoning = message.get("reasoning_content") or message.get("reasoning")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return Reply()
        if error:
            raise self._broken(f"status 200 with an error: {json.dumps(error, ensure_ascii=False)}")
        if not isinstance(text, str) and not isinstance(reasoning, str):
            return Reply()
        return Reply(
            content=text if isinstance(text, str) else "",
            reasoning=reasoning if isinstance(reasoning, str) else "",
            cut_off=choice.get("finish_reason") in _CUT_OFF,
        )

    def _broken(self, what: str) -> ConnectionError:
        return ConnectionError(f"{self.server.url}: {self._quoted(what)}")

    def _quoted(self, text: str) -> str:
        """The beginning of a text in one line, without the key: servers repeat what they were sent."""
        hidden = text.replace(self._key, "…") if self._key else text
        return " ".join(hidden.split())[:_SAID]


class Endpoint(ChatEndpoint):
    """A judge."""

    def __init__(self, config: EndpointConfig):
        super().__init__(config)
        self.config = config

    def complete(self, messages: list[dict[str, str]], temperature: float | None = None) -> tuple[str, bool]:
        """The answer to a conversation, and whether it was cut off; "", which holds no verdict, where there is none.
        `temperature` None takes the configured one. Raises as `ask` does."""
        warmth = self.config.temperature if temperature is None else temperature
        reply = self.ask(messages, {"max_tokens": self.config.max_tokens, "temperature": warmth})
        return reply.content, reply.cut_off


def _key(name: str | None, who: str) -> str:
    """The key in the environment variable `name`, "" where none is named. No message holds it."""
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()  # a file's last line break comes along easily
    if not key:
        raise StageError(
            f"{who}: the environment variable {name} (endpoint.api_key_env) is not set where this process runs; export "
            "the key there (on a cluster, where `ray start` is called)"
        )
    if not _HEADER_TEXT.fullmatch(key):
        raise StageError(
            f"{who}: the environment variable {name} (endpoint.api_key_env) holds a line break or another character "
            "that no HTTP header can carry; export the key alone"
        )
    return key


def _pause(response: HTTPResponse) -> float | None:
    """Seconds after which a busy server wants to be asked again; None where it is not busy or does not say."""
    said = response.headers.get("Retry-After", "").strip()
    if response.status not in (429, 503) or not said:
        return None
    try:
        seconds = float(said) if said.isdecimal() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(_SHORTEST_PAUSE_S, seconds)


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
    if response.length:  # read1 ends without a word where the connection does
        raise HTTPException(f"the answer broke off {response.length} bytes before its end")
    return content
