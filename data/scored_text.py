"""What a reward model reads: a prompt and the response that is judged, as token ids that end with EOS."""

from collections.abc import Mapping, Sequence

from data.chat import THINK_CLOSE, THINK_OPEN, opened_by, render_prompt, text_ids


def scored_ids(tokenizer, messages: Sequence[Mapping[str, str]], response: str) -> list[int]:
    """Token ids of the conversation with its last answer, rendered by the tokenizer's chat template.

    Where the template opens the reasoning of an answer, that of a final summary is closed at once; a whole response
    continues it. Training and scoring both read this, so a model is never asked about text it was not trained on.
    """
    prompt_ids = render_prompt(tokenizer, messages, "chat")
    opening = opened_by(tokenizer, prompt_ids)
    if opening and THINK_OPEN not in response and THINK_CLOSE not in response:
        response = f"{THINK_CLOSE}\n\n{response}"
    said = response.removeprefix(opening if response.startswith(opening) else opening.rstrip())
    return [*prompt_ids, *text_ids(tokenizer, said), tokenizer.eos_token_id]
