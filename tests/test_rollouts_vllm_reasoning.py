"""The reasoning parser inside vLLM's own machinery: whole texts and streams, for every way that completions begin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.chat import opened_by, parse_completion, render_prompt
from models.config import TinyModelConfig
from models.tiny import build_tokenizer

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow  # importing vLLM takes more than ten seconds

QUESTION = {"role": "user", "content": "What is 3 + 8?"}
ALONE, LATER = [QUESTION], [QUESTION, {"role": "assistant", "content": "<think>a</think>b"}, QUESTION]
CASES = [
    ("<think>\n3 + 8 = 11\n</think>\n\nThe answer is 11.", "3 + 8 = 11", "The answer is 11."),
    ("<think>a < b </thin</think> <answer>6</answer>", "a < b </thin", "<answer>6</answer>"),
    ("<think></think>11", "", "11"),
    ("<think>cut off", "cut off", ""),
    ("<think>cut off </th", "cut off </th", ""),
    ("No tags at all.", "", "No tags at all."),
    ("a</think>b", "", "a</think>b"),
    ("<thin air", "", "<thin air"),
    (" <", "", "<"),
    ("<think>a</think>b</think>c", "a", "b</think>c"),
    ("", "", ""),
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["<think>3 + 8 = 11</think> The answer is 11. 计算"] * 9, TinyModelConfig(vocab_size=400))


@pytest.fixture(scope="module")
def opening(tokenizer):
    """The same tokenizer with a template that opens the reasoning, as R1's."""
    other = build_tokenizer(["<think>3 + 8 = 11</think> The answer is 11. 计算"] * 9, TinyModelConfig(vocab_size=400))
    other.chat_template += "{{ '<think>\n' }}"
    assert opened_by(other, render_prompt(other, ALONE)) == "<think>\n"
    return other


@pytest.fixture(scope="module")
def split():
    """A function that splits a completion as vLLM's server does: whole, or when `pieces` stream."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser import ParserManager
    from vllm.reasoning import ReasoningParserManager

    from rollouts import vllm_reasoning

    ReasoningParserManager.import_reasoning_parser(vllm_reasoning.__file__)
    request = ChatCompletionRequest(messages=ALONE)

    def apply(name, tokenizer, text, messages=ALONE, pieces=None):
        parser = ParserManager.get_parser(reasoning_parser_name=name)(tokenizer, None, chat_template_kwargs={})
        if pieces is None:
            reasoning, content, _ = parser.parse(text, request)
            return reasoning or "", content or ""
        prompt, parts = render_prompt(tokenizer, messages), ["", ""]
        for number, piece in enumerate(pieces):
            ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
            last = number == len(pieces) - 1
            delta = parser.parse_delta(piece, ids, request, prompt_token_ids=prompt, finished=last)
            parts[0] += (delta.reasoning or "") if delta else ""
            parts[1] += (delta.content or "") if delta else ""
        return tuple(parts)

    return apply


@pytest.mark.parametrize("messages", [ALONE, LATER], ids=["first turn", "later turn"])
@pytest.mark.parametrize(("text", "reasoning", "content"), CASES)
@pytest.mark.parametrize("size", [1, 3, 8, 100], ids="pieces of {}".format)
def test_streams_and_whole_texts_are_split_alike(split, tokenizer, text, reasoning, content, messages, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)] + [""]
    whole, streamed = split("r1", tokenizer, text), split("r1", tokenizer, text, messages, pieces)
    assert whole == streamed
    assert tuple(part.strip() for part in whole) == (reasoning, content)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [("3 + 8</think>11", "3 + 8", "11"), ("cut off", "cut off", ""), ("</think>11", "", "11"), ("", "", "")],
)
def test_a_prompt_may_have_opened_the_reasoning(split, opening, text, reasoning, content):
    for messages in (ALONE, LATER):
        assert split("r1_opened", opening, text, messages, [*text, ""]) == (reasoning, content)
    assert split("r1_opened", opening, text) == (reasoning, content)


plain = st.text(alphabet="ab<>/thinkanswer \n计", max_size=12).filter(lambda text: "think>" not in text)


@given(reasoning=plain, final=plain, data=st.data())
def test_well_formed_completions_are_split_as_rewards_read_them(split, tokenizer, reasoning, final, data):
    text = f"<think>{reasoning}</think>{final}"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parsed = parse_completion(text)
    assert split("r1", tokenizer, text) == split("r1", tokenizer, text, pieces=pieces) == (reasoning, final)
    assert (parsed.reasoning, parsed.final) == (reasoning.strip(), final.strip())


def test_reasoning_tokens_are_counted(split, tokenizer):
    from vllm.reasoning import ReasoningParserManager

    parser = ReasoningParserManager.get_reasoning_parser("r1")(tokenizer)
    opened = ReasoningParserManager.get_reasoning_parser("r1_opened")(tokenizer)
    ids = tokenizer("3 + 8 = 11</think> The answer is 11.", add_special_tokens=False)["input_ids"]
    count = ids.index(tokenizer.convert_tokens_to_ids("</think>"))
    assert count == opened.count_reasoning_tokens(ids) > 0
    assert parser.count_reasoning_tokens([tokenizer.convert_tokens_to_ids("<think>"), *ids]) == count
    assert parser.count_reasoning_tokens(ids) == 0  # no tag at the start: all is content


def test_structured_outputs_begin_where_the_reasoning_ends(split, tokenizer):
    from vllm.reasoning import ReasoningParserManager

    parser = ReasoningParserManager.get_reasoning_parser("r1")(tokenizer)
    ids = tokenizer("<think>a</think>b", add_special_tokens=False)["input_ids"]
    close = ids.index(tokenizer.convert_tokens_to_ids("</think>"))
    assert not parser.is_reasoning_end(render_prompt(tokenizer, LATER))
    ended = [parser.is_reasoning_end_streaming(ids[: n + 1], ids[n : n + 1]) for n in range(len(ids))]
    assert ended.index(True) == close
