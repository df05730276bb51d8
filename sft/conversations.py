"""Conversations: rows read and checked, then tokenised with loss on what the assistant said."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.chat import Template, opened_by, render_prompt, text_ids
from data.dataset_files import dataset_files
from data.schemas import SourceError, detect_language
from data.sources import read_jsonl, read_parquet
from sft.batch import Example
from training.stage import StageError

Messages = Sequence[Mapping[str, str]]
_ROLES = ("system", "user", "assistant")


def read_conversations(path: Path, source: str = "listed") -> Iterator[dict[str, Any]]:
    """SFT rows {id, messages, domain, language, source} of a JSONL or parquet file, or of a dataset's folder, checked.

    Only `messages` must be there; `source` fills in where a row does not name its own.
    Raises StageError naming file and line or row.
    """
    try:
        files = dataset_files(path) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise StageError(
                f"{path}: there is no such file; name a .jsonl, .jsonl.gz or .parquet file of conversations"
            )
        for file in files:
            placed = read_parquet(file) if file.suffix == ".parquet" else read_jsonl(file)
            for number, (place, row) in enumerate(placed, start=1):
                yield conversation_row(row, place, f"{file.stem}-{number}", source)
    except SourceError as error:
        raise StageError(str(error)) from None


def check_first_conversation(path: Path) -> None:
    """Read the first row of a file of conversations. Raises StageError as `read_conversations` does."""
    if next(read_conversations(path), None) is None:
        raise StageError(f"{path}: there are no rows; name a file of conversations")


def conversation_row(row: Mapping[str, Any], place: str, default_id: str, source: str) -> dict[str, Any]:
    """One SFT row, checked; what it does not say is filled in. Raises StageError naming `place`."""
    messages = checked_messages(row.get("messages"), place)
    question = next(m["content"] for m in reversed(messages) if m["role"] == "user")
    return {
        "id": str(row.get("id") or default_id),
        "messages": messages,
        "domain": str(row.get("domain") or "general"),
        "language": str(row.get("language") or detect_language(question)),
        "source": str(row.get("source") or source),
    }


def checked_messages(value: Any, place: str) -> list[dict[str, str]]:
    """The turns of one conversation. Raises StageError unless all answers follow a user turn and one is last."""
    expected = "expected a list of {role, content} whose assistant turns each answer a user turn, the last one too"
    try:
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    except (TypeError, KeyError):
        raise StageError(f"{place}: messages are missing or malformed; {expected}") from None
    previous = None
    for number, turn in enumerate(messages, start=1):
        role, content = turn["role"], turn["content"]
        if role not in _ROLES:
            raise StageError(f"{place}: turn {number} has role {role!r}; use {', '.join(_ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise StageError(f"{place}: turn {number} ({role}) has no text; drop the row or fill it in")
        if role == "assistant" and previous != "user":
            raise StageError(f"{place}: turn {number} answers no user turn; {expected}")
        previous = role
    if previous != "assistant":
        raise StageError(f"{place}: the last turn is not the assistant's; {expected}")
    return messages


def conversation_examples(tokenizer: Any, messages: Messages, template: Template) -> list[Example]:
    """A conversation as it is sampled: each assistant turn, with EOS, is trained on after the prompt that leads to it.

    One Example where later prompts continue earlier ones; another one begins where the template rewrites what was said
    before (R1's drops the reasoning of earlier turns).
    """
    examples: list[Example] = []
    ids: list[int] = []
    mask: list[bool] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt_ids = render_prompt(tokenizer, messages[:place], template)
        if prompt_ids[: len(ids)] != ids:
            examples.append(_example(ids, mask))
            ids, mask = [], []
        said = _removed_once(opened_by(tokenizer, prompt_ids), message["content"])
        answer_ids = [*text_ids(tokenizer, said), tokenizer.eos_token_id]
        mask += [False] * (len(prompt_ids) - len(ids)) + [True] * len(answer_ids)
        ids = [*prompt_ids, *answer_ids]
    return [*examples, _example(ids, mask)]


def _removed_once(opening: str, content: str) -> str:
    """The answer as it is sampled: what the prompt has opened is not opened again, whatever space follows the tag."""
    return content.removeprefix(opening if content.startswith(opening) else opening.rstrip())


def _example(ids: list[int], mask: list[bool]) -> Example:
    return Example(token_ids=np.array(ids, dtype=np.int64), loss_mask=np.array(mask, dtype=bool))
