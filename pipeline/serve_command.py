"""`r1 serve`: vLLM's OpenAI-compatible server on a checkpoint. What can be checked is checked before vLLM is imported,
which takes long; then this process, heavy with torch, becomes the light one that watches over the server.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data.chat import PromptError, Template, jinja_template, opened_by, render_prompt
from pipeline import supervise
from pipeline.errors import RecipeError
from pipeline.inputs import context_length, loadable_checkpoint
from rollouts import vllm_cpu

_INSTALL = "make .venv/.vllm without a GPU, pip install 'r1-pipeline[vllm]' with one"
# `vllm serve` is the same program, but fails in vllm-cpu 0.32, which looks for a package named vllm.
_SERVER = "vllm.entrypoints.openai.api_server"


def serve(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder, e.g. runs/tiny/general_rl")],
    extra: Annotated[list[str] | None, typer.Argument(help="after --: arguments of vllm serve", metavar="VLLM")] = None,
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port")] = 8000,
    template: Annotated[Template, typer.Option(help="chat; plain or r1_zero for base and zero")] = "chat",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto: what vLLM is built for")] = "auto",
) -> None:
    """Serve a checkpoint by vLLM with OpenAI's API, until interrupted; r1 chat URL talks to it."""
    folder = loadable_checkpoint(checkpoint)
    on_cpu = _is_for_cpu(device)
    told = {"dtype": "float32"} | vllm_cpu.engine_arguments(context_length(folder) or 4096) if on_cpu else {}
    told |= {"model": str(folder), "served_model_name": folder.name, "host": host, "port": port}
    try:
        told |= _chat_arguments(folder, template)
    except PromptError as error:
        raise RecipeError(f"{checkpoint}: {error}") from None
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RecipeError(f"cannot listen at {host}: {error.strerror}") from None
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"loading {folder.name}; then r1 chat {url}, or OpenAI's API at {url}/v1; Ctrl-C ends", flush=True)
    python = [sys.executable, "-P", "-W", "ignore"]  # -P: folders named as packages may be in the working directory
    command = [*python, "-m", _SERVER, *_flags(told), *(extra or ())]
    os.execve(sys.executable, [*python, supervise.__file__, host, str(port), *command], _environment(on_cpu))


def _is_for_cpu(device: str) -> bool:
    """Whether vLLM will run on the CPU. Raises RecipeError when it cannot run at all, or not on `device`."""
    if find_spec("vllm") is None:
        raise RecipeError(f"vLLM is not installed: {_INSTALL}")
    try:
        built_for = "cpu" if "cpu" in version("vllm") else "cuda"
    except PackageNotFoundError:  # the package vllm-cpu
        built_for = "cpu"
    if device not in ("auto", built_for):
        raise RecipeError(f"--device {device}: the installed vLLM is built for {built_for}; {_INSTALL}")
    if built_for == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise RecipeError(f"the installed vLLM needs a GPU, and torch finds none; {_INSTALL}")
    return built_for == "cpu"


def _chat_arguments(folder: Path, template: Template) -> dict[str, Any]:
    """Template and reasoning parser. Raises PromptError when the tokenizer does not allow this template."""
    from models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(folder)
    jinja = jinja_template(tokenizer, template)
    opened = opened_by(tokenizer, render_prompt(tokenizer, [{"role": "user", "content": "1 + 1?"}], template))
    return {
        "reasoning_parser_plugin": str(Path(vllm_cpu.__file__).with_name("vllm_reasoning.py")),
        "reasoning_parser": "r1_opened" if opened else "r1",
        **({"chat_template": jinja} if jinja else {}),
    }


def _environment(on_cpu: bool) -> dict[str, str]:
    """What the user has set comes first."""
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    return {**quiet, **(vllm_cpu.environment() if on_cpu else {}), **os.environ}


def _flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Arguments as vLLM's command line takes them."""
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        else:
            yield from (flag, json.dumps(value) if isinstance(value, dict | list) else str(value))
