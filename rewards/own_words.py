"""What a judge wrote itself, after its reasoning: neither what it quotes nor what it thought decides anything.

Judges are shown everything with "> " before each line (`data.judging.quote`), so a judge that quotes keeps that mark.
"""

from data.chat import ANSWER_CLOSE, ANSWER_OPEN, parse_completion

QUOTED = ">"


def own_lines(text: str) -> list[str]:
    """The lines after the reasoning that are not blank; those in the answer tags where the text ends with them.

    Of a quoted line the mark alone is left: tags in it open and close nothing, and a text that ends with a quotation
    does not end with the line before. Never raises.
    """
    unquoted = "\n".join(QUOTED if line.lstrip().startswith(QUOTED) else line for line in text.splitlines())
    final = parse_completion(unquoted).final
    if final.endswith(ANSWER_CLOSE):  # tags elsewhere may be those of a response
        final = final.removesuffix(ANSWER_CLOSE).rpartition(ANSWER_OPEN)[2]
    return [line for line in final.splitlines() if line.strip()]
