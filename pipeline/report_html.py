"""HTML that escapes by default, and the small pieces every section of the report is set from.

`fill` is the only way text gets into the page: whatever is not already `Html` is escaped. Completions are untrusted
output of a model; nothing here trusts them, and the page's content security policy allows no request at all.
"""

import html
import re
from collections.abc import Iterable
from typing import Any

# C0 controls other than tab and newline are not characters of HTML; lone surrogates cannot be written as UTF-8.
_NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


def text(value: Any) -> Html:
    """`value` as escaped text, safe between tags and inside double-quoted attributes."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_NOT_TEXT.sub("\ufffd", str(value)), quote=True))


def fill(template: str, *args: Any, **kwargs: Any) -> Html:
    """`template.format(...)` with every value escaped unless it is Html."""
    return Html(template.format(*map(text, args), **{name: text(value) for name, value in kwargs.items()}))


def join(parts: Iterable[Any], separator: str = "") -> Html:
    return Html(separator.join(text(part) for part in parts))


def section(anchor: str, title: str, *body: Html) -> Html:
    return fill('<section id="{}"><h2>{}</h2>{}</section>', anchor, title, join(body))


def missing(what: str) -> Html:
    return fill('<p class="missing">{}: not made yet.</p>', what)


def details(summary: Html | str, *body: Html, opened: bool = False) -> Html:
    start = Html("<details open>" if opened else "<details>")
    return fill("{}<summary>{}</summary>{}</details>", start, summary, join(body))


def table(header: Iterable[Any], rows: Iterable[Html], caption: Any = "", css: str = "") -> Html:
    """A table that scrolls sideways on its own. `rows` are made with `row`."""
    return fill(
        '<figure><div class="scroll"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
        "<figcaption>{}</figcaption></figure>",
        css,
        join(fill('<th scope="col">{}</th>', cell) for cell in header),
        join(rows),
        caption,
    )


def row(title: Any, cells: Iterable[Any], css: str = "") -> Html:
    return fill(
        '<tr class="{}"><th scope="row">{}</th>{}</tr>', css, title, join(fill("<td>{}</td>", cell) for cell in cells)
    )


def chip(label: str, kind: str) -> Html:
    return fill('<span class="chip {}">{}</span>', kind, label)


def untrusted(content: str, limit: int = 1500) -> Html:
    """Model output or other foreign text, as it is, cut at `limit` characters."""
    cut = len(content) - limit
    note = fill('<span class="muted">\n[{} more characters]</span>', f"{cut:,}") if cut > 0 else Html("")
    return fill('<pre dir="auto">{}{}</pre>', content[:limit], note)


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def number(value: Any) -> str:
    """A quantity for reading: integers with separators, floats with four significant digits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
