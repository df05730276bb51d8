"""The problems of evaluation suites, to keep them out of training data. Free of torch."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data.config import ProblemSource, is_local
from data.schemas import SourceError


def suite_sources(suites: Iterable[Path]) -> Iterator[ProblemSource]:
    """The problem sources of evaluate recipes, their paths relative to the file that names them.

    Raises SourceError for a file that is no such recipe, or one without sources (its problems are procedural, and
    known to `sft.held_out` as far as they are the default ones).
    """
    for suite in suites:
        for written in _sources(suite):
            try:
                source = ProblemSource(**written)
            except (ValidationError, TypeError) as error:
                raise SourceError(f"{suite}: problems.sources: {str(error).splitlines()[0]}") from None
            if is_local(source.path, suite.parent):
                source = source.model_copy(update={"path": str(suite.parent / Path(source.path).expanduser())})
            yield source


def _sources(suite: Path) -> list[Any]:
    try:
        sources = yaml.safe_load(suite.read_text(encoding="utf-8"))["problems"]["sources"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{suite} is no suite with problems.sources ({type(error).__name__}: {error})") from None
    if not isinstance(sources, list) or not sources:
        raise SourceError(f"{suite}: problems.sources is no list of sources; name an evaluate recipe that has some")
    return sources
