"""Settings of a server that is asked over OpenAI's chat API."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, model_validator

from data.config import OPERATIONAL


class ServerConfig(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A server that speaks OpenAI's chat API."""

    url: str = Field(
        default="", description="address up to and with /v1, e.g. http://127.0.0.1:8000/v1; none by default"
    )
    model: str = Field(default="", description="name of the model as the server knows it; none by default")
    api_key_env: str | None = Field(
        default=None,
        description="name of the environment variable that holds the key, which is never written down; none: no key",
    )
    concurrency: Annotated[int, OPERATIONAL] = Field(
        default=8, ge=1, description="requests at a time; what a server of one GPU batches well"
    )
    deadline_s: Annotated[float, OPERATIONAL] = Field(
        default=120.0, gt=0, description="seconds for one whole answer; a judge writes up to a thousand words"
    )

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        parts = urlsplit(self.url)
        if parts.username is not None:
            raise ValueError("endpoint.url: leave user and password out; name a variable in endpoint.api_key_env")
        if "?" in self.url or "#" in self.url:
            raise ValueError(
                "endpoint.url: leave out what follows ? or #; a key belongs in the variable that endpoint.api_key_env "
                "names"
            )
        if self.url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"endpoint.url: {self.url} is not a web address, such as http://127.0.0.1:8000/v1")
        return self


class EndpointConfig(ServerConfig, extra="forbid", frozen=True, allow_inf_nan=False):
    """A server as a judge."""

    temperature: float = Field(default=0.0, ge=0, description="0, as Arena-Hard's judge")
    max_tokens: int = Field(default=4096, ge=1, description="longest answer of the judge, tokens; Arena-Hard's 4096")
