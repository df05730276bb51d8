"""Runs a Python program in a job: as a script, or as a module whose functions are called with plain values.

Nothing here is trusted once the program runs: what comes out are claims, and the other side compares them.
"""

import builtins
import contextlib
import importlib
import io
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from rewards.sandbox.jail import plain

CALLS_FROM, CLAIMS_TO = 3, 4  # descriptors of a module job
_MAX_ITEMS = 100_000
_MODULE_NAME = "solution"


class Uncompilable(Exception):
    """The program is no Python. The message is for people."""


def compile_program(source: bytes) -> types.CodeType:
    """Compile inside the limits of the job. Raises Uncompilable."""
    try:
        return compile(source, "main.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise Uncompilable(f"{type(error).__name__}: {str(error)[:300]}") from None


def open_standard_streams() -> None:
    sys.stdin = sys.__stdin__ = _text(0, "r")
    sys.stdout = sys.__stdout__ = _text(1, "w")
    sys.stderr = sys.__stderr__ = _text(2, "w", line_buffering=True)


def _text(descriptor: int, mode: str, line_buffering: bool = False) -> io.TextIOWrapper:
    raw = io.FileIO(descriptor, mode, closefd=False)
    buffered = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    errors = "backslashreplace" if descriptor == 2 else "surrogateescape"
    return io.TextIOWrapper(buffered, encoding="utf-8", errors=errors, line_buffering=line_buffering)


def forget_ourselves() -> None:
    """Programs see a plain interpreter: no modules of the jail, no path to them, numpy's random state not shared."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4)))  # forked jobs would draw the same numbers
    for name in [name for name in sys.modules if name.split(".")[0] == "rewards"]:
        del sys.modules[name]
    sys.argv = ["main.py"]


def run_script(code: types.CodeType) -> int:
    """Run as `__main__` to its end, with exit hooks. Returns the exit code."""
    module = new_module("__main__")

    def work() -> None:
        exec(code, module.__dict__)

    return _finish(_exit_code(work))


def serve_module(code: types.CodeType) -> int:
    """Run as a module, then answer calls, one JSON object per line, until there are no more. Returns the exit code.

    {"call": name, "args": value, "kwargs": value}; `name` may be `Class`, or a method of an object made before:
    {"object": number, ...}. Answers: {"value": ...}, {"raised": [type, message]} or {"object": number}, and under
    "args", where the request has an object, the arguments as the call left them, if it changed them.
    """
    module = new_module(_MODULE_NAME)

    def work() -> None:
        exec(code, module.__dict__)
        _answer_calls(module)

    return _finish(_exit_code(work))


def _answer_calls(module: types.ModuleType) -> None:
    objects: list[Any] = [module]
    with open(CALLS_FROM, encoding="ascii") as calls, open(CLAIMS_TO, "w", encoding="ascii") as claims:
        for line in calls:
            claims.write(_answer(objects, json.loads(line)) + "\n")
            claims.flush()


def _answer(objects: list[Any], request: dict[str, Any]) -> str:
    arguments = plain.from_json(request["args"])
    watched = "object" in request  # a unit test sees what becomes of its arguments, which are no longer than answers
    before = plain.encode(arguments) if watched else ""
    try:
        value = _call(objects[request.get("object", 0)], request["call"], arguments, request)
    except Exception as error:
        return json.dumps({"raised": [_builtin_base(error), str(error)[:500]]})
    answer: dict[str, Any] = {}
    try:
        answer["value"] = json.loads(plain.encode(value))
    except plain.NotPlain as reason:
        objects.append(value)  # stays here; the caller gets its number
        answer = {"object": len(objects) - 1, "why": str(reason)}
    with contextlib.suppress(plain.NotPlain):
        after = plain.encode(arguments) if watched else ""
        if after != before:
            answer["args"] = json.loads(after)
    return json.dumps(answer)


def _builtin_base(error: Exception) -> str:
    """The test knows no class of the program: what it can catch is the nearest built-in one."""
    bases = type(error).__mro__
    return next(base.__name__ for base in bases if vars(builtins).get(base.__name__) is base)


def _call(target: Any, name: str, arguments: list[Any], request: dict[str, Any]) -> Any:
    if name == "__iter__":  # the items of an object that stays here
        return [item for item, _ in zip(target, range(_MAX_ITEMS), strict=False)]
    if name == "__len__":
        return len(target)
    if name == "__getitem__":
        return target[arguments[0]]
    if name == "__get__":
        return getattr(target, arguments[0])
    function = find_function(target, name)
    return function(*arguments, **plain.from_json(request.get("kwargs", {"dict": []})))


def find_function(target, path):
    """The function of that name, or the method `Class.name` of an object made without arguments."""
    *owners, last = path.split(".")
    for name in owners:
        target = getattr(target, name)
        target = target() if isinstance(target, type) else target
    return getattr(target, last)


def new_module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__="main.py")
    sys.modules[name] = module
    return module


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return (stop.code or 0) & 0xFF
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next  # the program's frames only
        try:
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        except BaseException:
            return 1
        return 1
    return 0


def _finish(code: int) -> int:
    """What the interpreter does at its end: wait for threads, run exit hooks, flush."""
    threading, atexit = importlib.import_module("threading"), importlib.import_module("atexit")
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 120
    return code
