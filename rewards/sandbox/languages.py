"""One table of languages: how a program is compiled and run, and what its runtime needs to see and to reserve."""

import os
import shutil
from dataclasses import dataclass

from rewards.sandbox.errors import SandboxUnavailable

_TOOLCHAIN = ("/usr/bin", "/usr/include", "/usr/libexec", "/usr/local/include")


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """`compile` and `run` are argument lists without their first element, which is `tool`, found on this machine."""

    name: str
    tool: str = ""  # compiler or interpreter; empty for Python, which runs in the zygote
    source_name: str = ""
    compile: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    memory: str = "address-space"  # "data" for runtimes that reserve address space they never use
    runtime_mb: int = 0  # what the runtime needs for itself, on top of the program's limit
    shown: tuple[str, ...] = ()
    code_fences: tuple[str, ...] = ()  # info strings of code blocks in this language


_CC = ("-O2", "-pipe", "-o", "program")

LANGUAGES = {
    language.name: language
    for language in (
        Language(name="python", code_fences=("python", "py", "python3")),
        Language(
            name="cpp",
            tool="g++",
            source_name="main.cpp",
            compile=("-std=c++17", *_CC, "main.cpp"),
            shown=_TOOLCHAIN,
            code_fences=("cpp", "c++", "cc"),
        ),
        Language(
            name="c",
            tool="gcc",
            source_name="main.c",
            compile=("-std=c17", *_CC, "main.c", "-lm"),
            shown=_TOOLCHAIN,
            code_fences=("c",),
        ),
        Language(
            name="javascript",
            tool="node",
            source_name="main.js",
            run=("main.js",),
            memory="data",
            runtime_mb=256,
            shown=("/usr/share/nodejs",),
            code_fences=("javascript", "js", "node"),
        ),
    )
}


def find_language(name: str) -> Language:
    """Raises SandboxUnavailable for an unknown one, or one whose compiler or interpreter is not installed."""
    language = LANGUAGES.get(name)
    if language is None:
        raise SandboxUnavailable(f"The language {name!r} is not in the table; known are {', '.join(LANGUAGES)}.")
    if language.tool and tool_path(language) is None:
        raise SandboxUnavailable(f"The language {name} needs {language.tool}, which is not on the PATH.")
    return language


def tool_path(language: Language) -> str | None:
    found = shutil.which(language.tool)
    return os.path.realpath(found) if found else None


def shown_paths(names: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the host that these languages need to see."""
    shown: list[str] = []
    for name in names:
        language = find_language(name)
        shown += [*language.shown, *filter(None, [tool_path(language)])]
    return tuple(dict.fromkeys(shown))
