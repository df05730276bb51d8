"""Runs a test program that calls a solution living in another jail. Only plain values cross, so no object can lie.

The test program comes with the problem, not from the model. The solution's functions are stand-ins here: each call
goes out as one line and its answer comes back as one line (`python_runner.serve_module` is the other end).
"""

import ast
import builtins
import contextlib
import importlib
import json
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from rewards.sandbox.jail import plain
from rewards.sandbox.jail.python_runner import CALLS_FROM, CLAIMS_TO, new_module


class NeedsLiveObjects(BaseException):
    """The test hands over or needs something that has no plain form. No `except Exception` of a test swallows it."""


class _NoValue(BaseException):
    """The test hands over what has no plain form, after the solution has answered: perhaps its doing."""


class _SolutionError(Exception):
    """The solution raised an exception of its own."""


class _Line:
    """The connection to the solution."""

    def __init__(self) -> None:
        self._answers = open(CALLS_FROM, encoding="ascii")  # noqa: SIM115  lives as long as the process
        self._calls = open(CLAIMS_TO, "w", encoding="ascii")  # noqa: SIM115
        self._answered = False

    def tell(self, message: dict[str, Any]) -> None:
        self._calls.write(json.dumps(message) + "\n")
        self._calls.flush()

    def call(self, target: int, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            sent = {"args": json.loads(plain.encode(args)), "kwargs": json.loads(plain.encode(kwargs))}
        except plain.NotPlain as reason:
            if self._answered:  # then it may be made of what the solution returned: not the fault of the test
                raise _NoValue(f"the test passes on {reason}") from None
            raise NeedsLiveObjects(f"the test passes {reason}") from None
        self.tell({"object": target, "call": name, **sent})
        answer = json.loads(self._answers.readline())
        self._answered = True
        for mine, theirs in zip(args, plain.from_json(answer.get("args", [])), strict=False):
            _take_over(mine, theirs)
        if "raised" in answer:
            _raise(*answer["raised"], ends_iteration=name == "__next__")
        if "object" in answer:
            return Remote(self, answer["object"])
        return plain.from_json(answer["value"])


class Remote:
    """An object of the solution: its methods can be called, its items listed; equal to nothing but itself."""

    def __init__(self, line: _Line, number: int):
        self.__dict__.update(_line=line, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._line.call(self._number, "__call__", list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._line.call(self._number, "__get__", [name], {})

    def __iter__(self) -> Any:
        return iter(self._line.call(self._number, "__iter__", [], {}))

    def __next__(self) -> Any:
        return self._line.call(self._number, "__next__", [], {})

    def __len__(self) -> int:
        return self._line.call(self._number, "__len__", [], {})

    def __getitem__(self, key: Any) -> Any:
        return self._line.call(self._number, "__getitem__", [key], {})


def run_unit_test(payload: bytes) -> int:
    """`payload`: JSON with setup, test, entry_points. Tells {"verdict": passed, failed or broken, "detail": ...}."""
    line = _Line()
    spec = json.loads(payload)
    namespace = new_module("__test__").__dict__
    stage = "broken"
    try:
        exec(compile(spec["setup"], "setup.py", "exec"), namespace)
        tree = ast.parse(spec["test"])
        names = spec["entry_points"] or _missing_names(tree, namespace)
        for name in names:
            namespace[name] = _function(line, name)
        _refuse_values(tree, names)
        _offer_module(line)
        if "unittest" in spec["test"]:
            _silence_unittest_main()
        program = compile(tree, "test.py", "exec")
        stage = "failed"
        exec(program, namespace)
        _run_found(namespace, names)
    except NeedsLiveObjects as reason:
        line.tell({"verdict": "broken", "detail": str(reason)})
    except BaseException as error:
        line.tell({"verdict": stage, "detail": f"{type(error).__name__}: {str(error)[:300]}"})
    else:
        line.tell({"verdict": "passed", "detail": ""})
    return 0


def _run_found(namespace: dict[str, Any], names: list[str]) -> None:
    """What test programs define instead of running it: check(candidate), test functions, test cases."""
    if callable(namespace.get("check")) and names and isinstance(namespace["check"], types.FunctionType):
        namespace["check"](namespace[names[0]])
    for name, value in list(namespace.items()):
        if name.startswith("test") and isinstance(value, types.FunctionType):
            value()
    unittest = sys.modules.get("unittest")
    if unittest is None:
        return
    for case in [value for value in namespace.values() if isinstance(value, type)]:
        if issubclass(case, unittest.TestCase) and case.__module__ == "__test__":
            outcome = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(case).run(outcome)
            for _, trace in [*outcome.errors, *outcome.failures]:
                raise AssertionError(trace.strip().rpartition("\n")[2])


def _silence_unittest_main() -> None:
    """`unittest.main()` looks for cases in `__main__` and leaves; those of the test are run after it."""
    vars(importlib.import_module("unittest"))["main"] = lambda *_, **__: None


def _function(line: _Line, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return line.call(0, name, list(args), kwargs)

    call.__name__ = name
    return call


def _offer_module(line: _Line) -> None:
    """`from solution import f` works."""
    module = new_module("solution")
    vars(module)["__getattr__"] = lambda name: _function(line, name)


def _missing_names(tree: ast.Module, namespace: dict[str, Any]) -> list[str]:
    """Names the test uses and nobody defines, in order of appearance: the solution's."""
    used, made = [], set(namespace) | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.append(node.id) if isinstance(node.ctx, ast.Load) else made.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return [name for name in dict.fromkeys(used) if name not in made]


def _refuse_values(tree: ast.Module, names: list[str]) -> None:
    """Raises NeedsLiveObjects for a test that uses a name of the solution as more than a function: it is only that."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "solution"]
    theirs = {*names, *(alias.asname or alias.name for node in imports for alias in node.names)}
    for node in ast.walk(tree):
        match node:
            case ast.Compare() if not all(isinstance(sign, ast.Is | ast.IsNot) for sign in node.ops):
                used = [node.left, *node.comparators]
            case ast.BinOp():
                used = [node.left, node.right]
            case ast.Subscript() | ast.Attribute():
                used = [node.value]
            case ast.For() | ast.comprehension():
                used = [node.iter]
            case ast.ExceptHandler():
                used = [node.type]
            case _:
                continue
        for place in used:
            if isinstance(place, ast.Name) and place.id in theirs:
                raise NeedsLiveObjects(f"the test uses {place.id} of the program as a value, not as a function")


def _take_over(mine: Any, theirs: Any) -> Any:
    """A call that changed its arguments changes them here, too, down to the innermost. Returns what is there now."""
    if not isinstance(mine, type(theirs)):
        return theirs
    if isinstance(mine, list | tuple | deque):
        items = [_take_over(*pair) for pair in zip(mine, theirs, strict=False)] + list(theirs)[len(mine) :]
        if isinstance(mine, tuple):
            return mine if mine == tuple(items) else tuple(items)
        mine.clear()
        mine.extend(items)
    elif isinstance(mine, dict):
        items = {key: _take_over(mine[key], value) if key in mine else value for key, value in theirs.items()}
        mine.clear()
        mine.update(items)
    elif isinstance(mine, set):
        mine.clear()
        mine.update(theirs)
    else:
        return theirs
    return mine


def _raise(kind: str, message: str, ends_iteration: bool) -> NoReturn:
    """The solution's exception. A StopIteration out of a plain call would end the test's own `map` or `zip` early."""
    named = getattr(builtins, kind, None)
    error: Exception = _SolutionError(f"{kind}: {message}")
    quiet = not ends_iteration and kind in ("StopIteration", "StopAsyncIteration")
    if not quiet and isinstance(named, type) and issubclass(named, Exception):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and the like take more than a message
            error = named(message)
    raise error
