"""A reward model in vLLM says what the embedded one does: in one process, and spread over two nodes."""

import random
import shutil
from pathlib import Path

import pytest

from cluster.actors import kill, wait
from data.instructions import good_answer, instruction_problem
from models.checkpoint import load_model
from models.reward_head import RewardDescription, RewardHead, save_description, save_head
from rewards.preference import PreferenceOptions, start_scorer
from training.reward_scorer import RewardScorer

pytestmark = pytest.mark.slow
BASE = Path("recipes/tiny/base")
PROBLEMS = [instruction_problem(index, "train", "en", 0) for index in range(6)]
CONVERSATIONS = [([dict(turn) for turn in p.messages], good_answer(p, random.Random(0))) for p in PROBLEMS]
TOO_LONG = ([{"role": "user", "content": "again " * 4000}], "Yes.")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward") / "model"
    shutil.copytree(BASE, folder)
    save_head(folder, RewardHead(load_model(BASE).config.hidden_size, seed=1).weight_D)
    save_description(folder, RewardDescription(objective="helpful", mean=0.2, std=1.5))
    return str(folder)


@pytest.fixture(scope="module")
def expected(model) -> list[float | None]:
    scores = RewardScorer(model, device="cpu").score([*CONVERSATIONS, TOO_LONG])
    assert len(set(scores[:-1])) == len(CONVERSATIONS) and scores[-1] is None
    return scores


@pytest.mark.parametrize(
    "spread", [{}, {"tensor_parallel": 2}, {"tensor_parallel": 2, "nodes": 2}], ids=["one", "split", "nodes"]
)
def test_the_scores_are_those_of_the_embedded_model(model, expected, ray_session, spread):
    pytest.importorskip("vllm")
    scorer = start_scorer(PreferenceOptions(model=model, engine="vllm", device="cpu", **spread), "helpful_rm")
    try:
        scores = wait(scorer.score.remote([*CONVERSATIONS, TOO_LONG]), phase="scoring", deadline_s=240)
        assert scores[-1] is None
        assert scores[:-1] == pytest.approx(expected[:-1], abs=1e-5)
        assert wait(scorer.score.remote([TOO_LONG]), phase="scoring", deadline_s=60) == [None]
        kill(scorer, restart=True)
        again = wait(scorer.score.remote(CONVERSATIONS[:1]), phase="scoring again", deadline_s=240)
        assert again == pytest.approx(expected[:1], abs=1e-5)
    finally:
        kill(scorer)


def test_what_is_settled_is_not_for_the_recipe(model, ray_session):
    pytest.importorskip("vllm")
    from cluster.actors import StartFailed

    options = PreferenceOptions(model=model, engine="vllm", device="cpu", engine_args={"runner": "generate"})
    scorer = start_scorer(options, "helpful_rm")
    sentence = "engine_args.runner is not yours to set: it follows what is read: the state at the end of a conversation"
    with pytest.raises(StartFailed, match=sentence):
        wait(scorer.score.remote(CONVERSATIONS[:1]), phase="scoring", deadline_s=60)
    kill(scorer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tensor_parallel": 2}, "tensor_parallel is for engine vllm, and would be ignored by transformers"),
        ({"engine": "vllm", "tensor_parallel": 3, "nodes": 2}, "3 cannot be spread evenly over 2 nodes"),
    ],
)
def test_settings_that_cannot_be_are_refused(model, options, sentence):
    from rewards.combine import load_reward

    with pytest.raises(ValueError, match=sentence):
        load_reward("rewards.preference:HelpfulReward", {"model": model, **options})
