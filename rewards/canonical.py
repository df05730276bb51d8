"""One spelling for equal final answers, so that the completions of a problem can vote (cons@k)."""

from data.chat import parse_completion
from data.problems import Problem
from rewards.checkers import WHOLE_ANSWER, read_choice, read_list
from rewards.exact import parse_number, widen
from rewards.math_answer import extract_answer
from rewards.math_quantity import split_unit
from rewards.math_text import normalise


def canonical_answer(problem: Problem, completion: str) -> str | None:
    """The final answer of a completion as its checker understands it, or None when it has none.

    Numbers are written exactly (`0.5` and `\\frac{1}{2}` both as `1/2`) and without units, lists as `3, 5`, choices as
    `true` or `B`. A countdown answer is its expression without spaces: two ways to reach the target are two answers.
    Where all that is said is judged, and for programs, it is the final part as it stands: answers that differ in a word
    vote apart. Formulas are brought to one spelling, not to one form: `x+1` and `1+x` vote apart.
    """
    if problem.checker == "code" or problem.checker in WHOLE_ANSWER:
        parsed = parse_completion(completion)
        return (parsed.final if parsed.answer is None else parsed.answer).strip() or None
    text = extract_answer(completion).text
    if text is None:
        return None
    if problem.checker == "list":
        numbers = read_list(text)
        return text if numbers is None else ", ".join(map(str, numbers)) or "[]"
    if problem.checker == "choice":
        return read_choice(text) or text
    if problem.checker == "countdown":
        return "".join(widen(text).partition("=")[0].split()) or text
    plain = normalise(text)
    number = parse_number(split_unit(plain).value)
    return (plain or text) if number is None else str(number)
