"""`r1 sandbox`: what holds programs on this machine, run one, serve the sandbox to others."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.errors import RecipeError
from training.stage import StageError

if TYPE_CHECKING:
    from rewards.sandbox.probe import Finding

sandbox = typer.Typer(help="Run programs of a model in a jail.", no_args_is_help=True)

_Tier = Annotated[str, typer.Option(help="auto, ns, landlock or unsafe-none")]


def doctor() -> None:
    """Try every tier with attacks and say what holds. Exit code 1 when none does."""
    from rewards.sandbox.languages import LANGUAGES, tool_path
    from rewards.sandbox.probe import doctor as examine

    machine, tiers = examine()
    _print_findings("machine", machine)
    for tier, findings in tiers.items():
        _print_findings(f"tier {tier}", findings)
    found = [name for name, language in LANGUAGES.items() if not language.tool or tool_path(language)]
    print(f"languages: {', '.join(found)}")
    holding = [tier for tier, findings in tiers.items() if all(finding.good for finding in findings)]
    if not holding:
        raise StageError("No tier holds: programs of a model would not be run here.")
    print(f"programs run in tier {holding[0]}")


def run(
    file: Annotated[Path, typer.Argument(help="the program; its name ends in .py, .c, .cpp or .js")],
    tier: _Tier = "auto",
    cpu_s: Annotated[float, typer.Option(help="seconds of processor time")] = 5.0,
    memory_mb: Annotated[int, typer.Option(help="MiB of memory")] = 512,
) -> None:
    """Run one program in the jail, with this command's standard input. Its failure is exit code 1, with the reason."""
    from rewards.sandbox.languages import LANGUAGES
    from rewards.sandbox.limits import Limits
    from rewards.sandbox.pool import Program, Sandbox

    names = {
        ".py": "python",
        **{Path(entry.source_name).suffix: name for name, entry in LANGUAGES.items() if entry.tool},
    }
    if not file.is_file():
        raise RecipeError(f"{file} is not a file")
    if file.suffix not in names:
        raise RecipeError(f"{file}: the ending says the language, known are {', '.join(names)}")
    language = names[file.suffix]
    stdin = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()  # None: closed by the caller
    with _refusals(), Sandbox(tier, workers=1, languages=tuple({"python", language})) as box:
        source = file.read_bytes().decode(errors="surrogateescape")
        result = box.run(Program(language, source), stdin, Limits(cpu_s=cpu_s, memory_mb=memory_mb))
    sys.stdout.buffer.write(result.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(result.stderr)
    if result.failure is not None:
        raise StageError(f"{result.failure}: {result.detail}")


def serve(
    host: Annotated[str, typer.Option(help="address to listen at; others than loopback need a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one")] = 8080,
    token_file: Annotated[Path | None, typer.Option(help="file with the token clients must send")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="programs at once [default: processors]")] = None,
    language: Annotated[list[str] | None, typer.Option(help="language to offer; repeat for more")] = None,
    tier: _Tier = "auto",
) -> None:
    """Answer SandboxFusion's POST /run_code with this machine's sandbox, until interrupted."""
    from rewards.sandbox.pool import Sandbox
    from rewards.sandbox.serve import make_server

    with _refusals(), ExitStack() as stack:
        token = token_file.read_text().strip() if token_file else None
        box = stack.enter_context(Sandbox(tier, workers=workers, languages=tuple(language or ["python"])))
        server = make_server(box, host, port, token)
        print(f"tier {box.tier}, http://{host}:{server.server_address[1]}/run_code", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()


@contextmanager
def _refusals() -> Iterator[None]:
    """Refusals of the sandbox as errors of the command line."""
    from rewards.sandbox.errors import SandboxError, SandboxUnavailable

    try:
        yield
    except (SandboxUnavailable, SandboxError, ValueError, OSError) as error:  # OSError: no such file, port in use
        raise RecipeError(str(error)) from None


def _print_findings(title: str, findings: "list[Finding]") -> None:
    print(f"{title}:")
    for finding in findings:
        print(f"  {'ok ' if finding.good else 'BAD'} {finding.name}: {finding.detail}")
