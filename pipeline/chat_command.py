"""`r1 chat`: ask a checkpoint, one question per line. Every line is a conversation of its own, as in training."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, Template, parse_completion, render_prompt
from pipeline.errors import RecipeError, printable, stage_errors
from pipeline.inputs import loadable_checkpoint

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.chat_server import Part
    from rollouts.records import SamplingParams

# Prints the answer to the question of this number. Raises ValueError when the next question may do better.
Answer = Callable[["Console", int, str], None]


def chat(
    checkpoint: Annotated[str, typer.Argument(help="checkpoint folder, or the address of a server: r1 serve")],
    template: Annotated[Template, typer.Option(help="chat; plain or r1_zero for base and zero")] = "chat",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token; 0.6 as the paper")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="nucleus; 0.95 as the paper")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest completion, tokens")] = 32768,
    seed: Annotated[int, typer.Option(help="the same seed and questions give the same completions")] = 0,
) -> None:
    """Ask a checkpoint: questions are read line by line from the terminal or a pipe; Ctrl-D ends."""
    from rollouts.records import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if checkpoint.startswith(("http://", "https://")):
        if template != "chat":
            raise RecipeError(f"--template {template} belongs to r1 serve: the template is the server's")
        answer = _ask_server(checkpoint, params)
    else:
        answer = _ask_checkpoint(Path(checkpoint), template, params)

    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for number, question in enumerate(_questions(console)):
        try:
            answer(console, number, question)
        except ValueError as error:  # a question too long for the model; the next one may fit
            print(error, file=sys.stderr)


def _ask_checkpoint(checkpoint: Path, template: Template, params: "SamplingParams") -> Answer:
    folder = loadable_checkpoint(checkpoint)

    from rollouts.records import Request
    from rollouts.transformers_generator import TransformersGenerator

    with stage_errors(f"{checkpoint} cannot be loaded", Path(".r1_chat_error.log"), again=""):
        generator = TransformersGenerator(str(folder), max_slots=1)
    if template == "chat" and not generator.tokenizer.chat_template:
        raise RecipeError(f"{checkpoint}: its tokenizer has no chat template; try --template plain")

    def answer(console: "Console", number: int, question: str) -> None:
        prompt = render_prompt(generator.tokenizer, [{"role": "user", "content": question}], template)
        [group] = generator.sample([Request(key=f"question {number + 1}", prompt_ids=prompt)], params)
        completion = group.completions[0]
        _print_completion(console, completion.text)
        if completion.finish_reason == "length":
            console.print(f"(cut off after {len(completion.token_ids)} tokens)", style="dim")

    return answer


def _ask_server(url: str, params: "SamplingParams") -> Answer:
    from pipeline.chat_server import ChatServer

    server = ChatServer(url)

    def answer(console: "Console", number: int, question: str) -> None:
        stream = server.ask(
            question,
            max_new_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed + number,
        )
        _print_stream(console, stream)

    return answer


def _questions(console: "Console") -> Iterator[str]:
    """Lines that are not blank; with a prompt sign on a terminal."""
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, sys.stdin))
        return
    console.print("One question per line, each on its own; Ctrl-D ends.", style="dim")
    while True:
        try:
            question = console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return
        if question:
            yield question


def _print_completion(console: "Console", text: str) -> None:
    """The reasoning dimmed, then the final answer; text without think tags as it is."""
    parsed = parse_completion(text)
    if parsed.reasoning is None or not parsed.final:
        _print_untrusted(console, text.strip())
        return
    _print_untrusted(console, parsed.reasoning, style="dim")
    _print_untrusted(console, parsed.final if parsed.answer is None else parsed.answer, style="bold")


def _print_stream(console: "Console", stream: "Iterator[tuple[Part, str]]") -> None:
    """The same piece by piece. What may turn out to be a tag or white space at the end of a part is held back."""
    current: Part | None = None
    shown: Part | None = None
    held, style, cut_off = "", "", False
    try:
        for part, text in stream:
            if part == "cut off":
                cut_off = True
                continue
            text = printable(held + text if part == current else text)
            current = part
            if part == "content":
                text = text.replace(ANSWER_OPEN, "").replace(ANSWER_CLOSE, "")
            if part != shown:
                text = text.lstrip()
            end = _settled(text) if part == "content" else len(text.rstrip())
            held = text[end:]
            if end and part != shown:
                style = "dim" if part == "reasoning" else "bold" if shown else ""
                console.print(end="\n" if shown else "")
                shown = part
            _print_untrusted(console, text[:end], style, end="")
        _print_untrusted(console, held.rstrip(), style, end="")
    finally:
        if shown:
            console.print()
    if cut_off:
        console.print("(cut off)", style="dim")


def _settled(text: str) -> int:
    """The length of what comes before white space and the beginning of an answer tag at the end."""
    tag = text.rfind("<")
    begun = tag >= 0 and any(known.startswith(text[tag:]) for known in (ANSWER_OPEN, ANSWER_CLOSE))
    return len((text[:tag] if begun else text).rstrip())


def _print_untrusted(console: "Console", text: str, style: str = "", end: str = "\n") -> None:
    """Print untrusted text as it is: without control characters, and no markup in it."""
    from rich.text import Text

    console.print(Text(printable(text), style=style), end=end)
