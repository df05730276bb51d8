"""Chunks of samples on disk: what is whole is read, what is damaged is sampled again. Nothing is really sampled."""

import logging

import pytest

from data.problems import Problem
from rewards.config import RewardSpec, RewardWorkersConfig
from rewards.reward import Verdict
from rollouts.config import GeneratorConfig, RolloutConfig
from sft import sampling
from sft.sampling import Prompt, Sampled
from training.stage import StageError


def prompt(number: int) -> Prompt:
    messages = ({"role": "user", "content": f"{number}?"},)
    problem = Problem(id=f"{number}", messages=messages, ground_truth="", checker="math", domain="d", language="en")
    return Prompt(key=f"zero_shot:{number}", problem=problem, prompt_ids=[number], source="zero_shot")


@pytest.fixture
def chunks(tmp_path, monkeypatch):
    """Samples five prompts in three chunks, in `tmp_path`; `chunks.asked` has the keys that were really sampled."""

    class Sampler:
        def __init__(self, *processes):
            self.close = lambda: None

        def sample(self, prompts):
            for p in reversed(prompts):  # groups come in any order
                if len(chunks.asked) == chunks.killed_after:
                    raise KeyboardInterrupt
                chunks.asked.append(p.key)
                texts = [f"答 {p.key}", "🙂\n"]
                yield (
                    p.key,
                    [
                        Sampled(text=text, n_tokens=3, truncated=False, verdict=Verdict.PASS, detail="")
                        for text in texts
                    ],
                )

    for name, fake in {"_Sampler": Sampler, "start_ray": lambda: None, "RewardPool": lambda *settings: None}.items():
        monkeypatch.setattr(sampling, name, fake)

    def chunks(first: int = 0, killed_after: int = -1):
        chunks.asked, chunks.killed_after = [], killed_after
        found = sampling.sampled_chunks(
            [prompt(first + number) for number in range(5)],
            policy=tmp_path,
            params=RolloutConfig().params(1, 0),
            generator=GeneratorConfig(),
            rewards=(RewardSpec(use="rewards.accuracy:Accuracy"),),
            reward_workers=RewardWorkersConfig(),
            chunk_prompts=2,
            work=tmp_path / "work",
            on_group=lambda done: None,
        )
        return list(found)

    return chunks


def test_chunks_that_are_there_are_not_sampled_again(chunks, caplog):
    made = chunks()
    assert [len(chunk) for chunk in made] == [2, 2, 1] and len(chunks.asked) == 5
    assert chunks() == made and chunks.asked == [] and not caplog.messages


DAMAGES = {
    "changed": lambda file: file.write_bytes(file.read_bytes().replace(b"zero_shot:3", b"zero_shot:7")),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "empty": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_reported_and_sampled_again(chunks, tmp_path, caplog, damage):
    made = chunks()
    file = tmp_path / "work" / "prompts_00000002.parquet"
    DAMAGES[damage](file)
    with caplog.at_level(logging.WARNING):
        assert chunks() == made
    assert chunks.asked == ["zero_shot:3", "zero_shot:2"]
    fault = "content differs from its checksum"
    assert caplog.messages == [f"{file} is damaged ({fault}); its prompts are sampled again"]
    assert chunks() == made and chunks.asked == []


@pytest.mark.parametrize("tail", [b'{"key": "zero_shot:0", "compl', b"\0" * 40 + b"\n"], ids=["cut", "zeros"])
@pytest.mark.parametrize("killed_after", range(5))
def test_a_killed_stage_samples_only_the_prompts_that_are_missing(chunks, tmp_path, killed_after, tail):
    """Every (prompt, sample) is sampled exactly once, whenever the kill comes; also when it cuts a line in two."""
    with pytest.raises(KeyboardInterrupt):
        chunks(killed_after=killed_after)
    before = chunks.asked
    for journal in (tmp_path / "work").glob("*.journal.jsonl"):
        with journal.open("ab") as file:
            file.write(tail)
    made = chunks()
    assert sorted(before + chunks.asked) == [f"zero_shot:{number}" for number in range(5)]
    for group in (group for chunk in made for group in chunk):
        assert [sampled.text for sampled in group[1]] == [f"答 {group[0].key}", "🙂\n"]
    assert not list((tmp_path / "work").glob("*.journal.jsonl"))


def test_chunks_of_other_prompts_are_refused(chunks):
    chunks()
    with pytest.raises(StageError, match="completions of other prompts; delete"):
        chunks(first=1)
