"""What a user is told when a recipe cannot be run: sentences, each with the place and the way to mend it."""

import difflib
from collections.abc import Iterable


class RecipeError(Exception):
    """Bad input, found before anything starts. `problems` holds one sentence per problem."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: "; did you mean 'lr'?", or the choices when none is near."""
    known = list(choices)
    lowered = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{lowered[near[0]]}'?"
    return f"; known: {', '.join(known)}" if known else ""
