"""`r1 chat`: ask a checkpoint, one question per line. Every line is a conversation of its own, as in training."""

import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data.chat import Template, parse_completion, render_prompt
from pipeline.errors import RecipeError, stage_errors
from pipeline.inputs import loadable_checkpoint

if TYPE_CHECKING:
    from rich.console import Console


def chat(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder, e.g. runs/tiny/general_rl")],
    template: Annotated[Template, typer.Option(help="chat; plain or r1_zero for base and zero")] = "chat",
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most probable token; 0.6 as the paper")] = 0.6,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="nucleus; 0.95 as the paper")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest completion, tokens")] = 32768,
    seed: Annotated[int, typer.Option(help="the same seed and questions give the same completions")] = 0,
) -> None:
    """Ask a checkpoint: questions are read line by line from the terminal or a pipe; Ctrl-D ends."""
    folder = loadable_checkpoint(checkpoint)

    from rich.console import Console

    from rollouts.records import Request, SamplingParams
    from rollouts.transformers_generator import TransformersGenerator

    console = Console(highlight=False, soft_wrap=True)
    with stage_errors(f"{checkpoint} cannot be loaded", Path(".r1_chat_error.log"), again=""):
        generator = TransformersGenerator(str(folder), max_slots=1)
    if template == "chat" and not generator.tokenizer.chat_template:
        raise RecipeError(f"{checkpoint}: its tokenizer has no chat template; try --template plain")
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    for number, question in enumerate(_questions(console)):
        prompt = render_prompt(generator.tokenizer, [{"role": "user", "content": question}], template)
        try:
            [group] = generator.sample([Request(key=f"question {number + 1}", prompt_ids=prompt)], params)
        except ValueError as error:  # a question too long for the model; the next one may fit
            print(error, file=sys.stderr)
            continue
        completion = group.completions[0]
        _print_completion(console, completion.text)
        if completion.finish_reason == "length":
            console.print(f"(cut off after {len(completion.token_ids)} tokens)", style="dim")


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


def _print_untrusted(console: "Console", text: str, style: str = "") -> None:
    """Print what a model wrote: no markup, and no control characters, which could drive the terminal."""
    from rich.text import Text

    kept = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    console.print(Text(kept, style=style))
