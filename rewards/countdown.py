"""Arithmetic on given whole numbers, in exact fractions: the evaluator of the countdown game.

    expression = term  {("+" | "-") term}
    term       = factor {("*" | "/") factor}
    factor     = NUMBER | "(" expression ")"

Its own reader, since the text is the model's: no eval, no powers, no signs before numbers, bounded length.
"""

import re
from fractions import Fraction

MAX_EXPRESSION_CHARS = 200  # also bounds the depth of recursion

_SYMBOLS = {
    "\\times": "*",
    "\\cdot": "*",
    "\\div": "/",
    "\\left": "",
    "\\right": "",
    "×": "*",
    "·": "*",
    "÷": "/",
    "$": "",
}
_TOKEN = re.compile(r"\s*(?:([0-9]+)|([-+*/()]))")


class ExpressionError(ValueError):
    """The text is not an expression of the game. The message says why."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """Value of the expression and the numbers in it, in order. Raises ExpressionError."""
    for symbol, plain in _SYMBOLS.items():
        text = text.replace(symbol, plain)
    text = text.strip()
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(f"The expression is longer than {MAX_EXPRESSION_CHARS} characters.")
    reader = _Reader(_tokenise(text))
    value = reader.expression()
    if reader.token is not None:
        raise ExpressionError(f"Unexpected {reader.token!r} in the expression.")
    return value, reader.numbers


def _tokenise(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"Not part of an expression: {text[position : position + 20]!r}.")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.position = 0
        self.numbers: list[int] = []

    @property
    def token(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self) -> str | None:
        token = self.token
        self.position += 1
        return token

    def expression(self) -> Fraction:
        value = self.term()
        while self.token in ("+", "-"):
            value = value + self.term() if self.take() == "+" else value - self.term()
        return value

    def term(self) -> Fraction:
        value = self.factor()
        while self.token in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
                continue
            divisor = self.factor()
            if divisor == 0:
                raise ExpressionError("The expression divides by zero.")
            value /= divisor
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token is not None and token.isdigit():
            self.numbers.append(int(token))
            return Fraction(int(token))
        if token != "(":
            raise ExpressionError("The expression ends too early." if token is None else f"Unexpected {token!r}.")
        value = self.expression()
        if self.take() != ")":
            raise ExpressionError("A parenthesis is not closed.")
        return value
