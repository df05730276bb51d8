"""One way to call every kind of reward: functions, classes, coroutines, batches. What goes wrong is an error score.

A reward is any of these, named by an import path (`module:name`):

    def short(problem, completion, *, max_words: int = 50) -> Score: ...      keyword-only arguments are its options
    class Short:  def __call__(self, problem, completion) -> Score: ...       options: a pydantic model named Options,
                                                                              or keyword-only constructor arguments
    async def short(problem, completion) -> Score: ...                        awaited, all of a batch at once
    class Short:  def score_batch(self, problems, completions) -> list[Score]

Instead of a Score it may return a truth value or a finite number from 0 to 1; 1 passes. A batch that raises is tried
again row by row, so that no completion can void the others.
"""

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from data.problems import Problem
from rewards.reward import Reward, Score

# Of the errors of the operating system, which another time may not meet, those that come again.
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


class FunctionReward:
    """A plain or async function as a reward of the same name, with its options filled in."""

    def __init__(self, function: Callable[..., Any], options: BaseModel | None = None):
        self.name = getattr(function, "__name__", type(function).__name__)  # an object that can be called has none
        self.judges = getattr(function, "judges", None)
        self._function = function
        self._options = {} if options is None else {name: getattr(options, name) for name in type(options).model_fields}

    def __call__(self, problem: Problem, completion: str) -> Any:
        return self._function(problem, completion, **self._options)


def options_model(target: Any) -> type[BaseModel] | None:
    """The pydantic model of a reward's options: its `Options`, or one made of its keyword-only arguments.

    None when it takes no options.
    """
    if (declared := getattr(target, "Options", None)) is not None:
        return declared
    try:
        signature = inspect.signature(target, eval_str=True)
    except Exception as error:  # eval_str runs the annotations, which are the user's
        raise ValueError(f"its signature cannot be read: {type(error).__name__}: {error}") from error
    parameters = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    if not parameters:
        return None
    fields: dict[str, Any] = {
        p.name: (Any if p.annotation is p.empty else p.annotation, ... if p.default is p.empty else p.default)
        for p in parameters
    }
    config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    return create_model("Options", __config__=config, **fields)


def check_call(target: Any, options: BaseModel | None) -> None:
    """Raises ValueError where a class or function cannot be called as `construct` and `judge` will call it."""
    given = {} if options is None else dict.fromkeys(type(options).model_fields)
    if not inspect.isclass(target):
        return _check_takes(target, ("problem", "completion"), given)
    if getattr(target, "Options", None) is not None:
        _check_takes(target, ("options",), {})
    else:
        _check_takes(target, (), given)
    name = "__call__" if getattr(target, "score_batch", None) is None else "score_batch"
    method = inspect.getattr_static(target, name) if any(name in vars(base) for base in target.__mro__) else None
    if method is None:
        raise ValueError("it has neither __call__(problem, completion) nor score_batch(problems, completions)")
    if inspect.isfunction(method):
        plural = "s" if name == "score_batch" else ""
        _check_takes(method, ("self", f"problem{plural}", f"completion{plural}"), {})


def _check_takes(function: Any, names: Sequence[str], options: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something built in, which does not say
        return
    try:
        signature.bind(*names, **options)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"it is called as {name}({', '.join([*names, *(f'{option}=...' for option in options)])}), and takes "
            f"{signature} ({error}); options are its keyword-only arguments, those after a *"
        ) from None


def construct(target: Any, options: BaseModel | None) -> Reward:
    """The reward object of a class or function. `options` is an instance of its `options_model`."""
    if not inspect.isclass(target):
        return FunctionReward(target, options)
    make: Any = target
    if options is None:
        return make()
    if getattr(target, "Options", None) is not None:
        return make(options)
    return make(**{name: getattr(options, name) for name in type(options).model_fields})


def judge(reward: Any, problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
    """One Score per pair, in order. Never raises: an exception is the failure of a grader, so an error score."""
    if len(problems) != len(completions):
        raise ValueError(f"judge got {len(problems)} problems and {len(completions)} completions.")
    batch = getattr(reward, "score_batch", None)
    if batch is not None:
        return _judge_batch(batch, problems, completions)
    results = [_attempt(reward, problem, completion) for problem, completion in zip(problems, completions, strict=True)]
    waiting = [position for position, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        for position, result in zip(waiting, _wait([results[position] for position in waiting]), strict=True):
            results[position] = result
    return [as_score(result) for result in results]


def as_score(result: Any) -> Score:
    """What a reward returned, as a Score. Anything that is no judgement is an error."""
    if isinstance(result, Score):
        return result
    if isinstance(result, Exception):
        passing = isinstance(result, OSError | MemoryError) and not isinstance(result, _LASTING)
        retry = bool(getattr(result, "retry", passing))
        return Score.error(f"{type(result).__name__}: {result}{_raised_at(result)}", retry=retry)
    if isinstance(result, bool):
        return Score.passed() if result else Score.failed()
    if isinstance(result, int | float) and 0 <= result <= 1:
        return Score.passed() if result == 1 else Score.failed(float(result))
    shown = f" {str(result)[:80]!r}" if isinstance(result, str | float) else ""  # others may not even be printable
    kind = f"{type(result).__module__}.{type(result).__qualname__}".removeprefix("builtins.")
    return Score.error(f"It returned{shown} ({kind}), which is no Score, truth value or number from 0 to 1.")


def _raised_at(error: Exception) -> str:
    """ " (dates.py line 12)": where in the reward's own file an exception was raised; "" where it came from nowhere."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own else ""


def _judge_batch(batch: Callable[..., Any], problems: Sequence[Problem], completions: Sequence[str]) -> list[Score]:
    try:
        results = batch(list(problems), list(completions))
        if inspect.isawaitable(results):
            (results,) = _wait([results])
        if isinstance(results, Exception):
            raise results
        scores = [as_score(result) for result in results]
    except Exception as error:
        if len(problems) == 1:
            return [as_score(error)]
        pairs = zip(problems, completions, strict=True)
        return [_judge_batch(batch, [problem], [completion])[0] for problem, completion in pairs]
    if len(scores) != len(problems):
        return [Score.error(f"It returned {len(scores)} scores for {len(problems)} completions.")] * len(problems)
    return scores


def _attempt(reward: Any, problem: Problem, completion: str) -> Any:
    try:
        return reward(problem, completion)
    except Exception as error:
        return error


def _wait(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Results or exceptions of awaitables, awaited together; also where an event loop runs already (async actors)."""

    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables, return_exceptions=True)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(gather())).result()
