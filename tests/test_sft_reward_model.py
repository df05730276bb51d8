"""Reward models: the maths of their losses, what is measured, that a cut-off run goes on bit for bit, and scoring."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.instructions import bad_answer, good_answer, instruction_problem
from data.preferences import JUDGEMENT, SCHEMAS, PreferencePair, SafetyLabel, about, preference_row
from data.safety_prompts import safe_answer, safety_problem, unsafe_answer
from data.scored_text import scored_ids
from models.checkpoint import load_tokenizer
from models.reward_head import RewardDescription, load_description, load_head
from pipeline.inputs import artifact_fault
from sft.preference_config import RewardModelConfig
from sft.reward_measures import Judged, calibration_error, measures, rank_correlation
from sft.reward_model import load_examples
from sft.reward_model import run as run_stage
from sft.reward_trainer import RewardTrainer, Scored, margins_of, pack_scored
from training.config import OptimizerConfig, TrainerConfig
from training.reward_scorer import RewardScorer
from training.run_log import METRICS
from training.stage import StageContext, StageError


def pair(index: int) -> PreferencePair:
    problem, rng = instruction_problem(index, "train", "en", 0), random.Random(index)
    good, bad = good_answer(problem, rng), bad_answer(problem, rng)
    return PreferencePair(id=f"{index}", chosen=good, rejected=bad, source="test", **about(problem))


def judgement(index: int) -> SafetyLabel:
    """A row of grm_meta_data."""
    text = f"Scores: [{2 + index % 2 * 7}, 5]"
    return SafetyLabel(
        id=f"{index}", prompt=f"Judge {index}.", response=text, safe=bool(index % 2), metadata=dict(JUDGEMENT)
    )


def label(index: int) -> SafetyLabel:
    problem, rng = safety_problem(index, "train", "en", 0), random.Random(index)
    reasoning, final = (safe_answer if index % 2 else unsafe_answer)(problem, rng)
    response = f"<think>\n{reasoning}\n</think>\n\n{final}"
    return SafetyLabel(id=f"{index}", response=response, safe=bool(index % 2), source="test", **about(problem))


def save(folder: Path, records) -> Path:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist([preference_row(record) for record in records], SCHEMAS[type(records[0])])
    pq.write_table(table, folder / "data.parquet")
    return folder


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("preferences")
    return {
        "helpful": save(folder / "pairs", [pair(index) for index in range(40)]),
        "safety": save(folder / "labels", [label(index) for index in range(40)]),
        "judgement": save(folder / "judgements", [judgement(index) for index in range(40)]),
    }


def config(**keys) -> RewardModelConfig:
    trainer = TrainerConfig(row_tokens=256, threads=1, checkpoint_every=2)
    common = {"batch_size": 8, "held_out_share": 0.25, "trainer": trainer, "optimizer": OptimizerConfig(lr=1e-3)}
    return RewardModelConfig(**common | keys)


def context(folder: Path, policy: Path, dataset: Path, report=lambda event: None) -> StageContext:
    inputs = {"policy": policy, "dataset": dataset}
    return StageContext(name="rm", inputs=inputs, output=folder, seed=3, report=report)


# --- the losses --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=8))
def test_losses_are_those_of_bradley_terry_and_of_cross_entropy(pairs):
    scores = torch.tensor([score for each in pairs for score in each], dtype=torch.float64)
    of_pairs = margins_of(scores, np.zeros(0, dtype=np.float32))
    expected = [-math.log(math.exp(c) / (math.exp(c) + math.exp(r))) if abs(c - r) < 30 else max(r - c, 0.0)
                for c, r in pairs]  # fmt: skip
    assert torch.allclose(-torch.nn.functional.logsigmoid(of_pairs), torch.tensor(expected, dtype=torch.float64),
                          atol=1e-9)  # fmt: skip
    labels = np.array([place % 2 for place in range(len(scores))], dtype=np.float32)
    by_torch = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, torch.from_numpy(labels).double(), reduction="none"
    )
    assert torch.allclose(-torch.nn.functional.logsigmoid(margins_of(scores, labels)), by_torch, atol=1e-9)


def test_no_pair_is_torn_apart():
    rng = np.random.default_rng(0)
    items = [Scored(token_ids=tuple(rng.integers(1, 9, rng.integers(1, 30)) for _ in range(2))) for _ in range(50)]
    rows = pack_scored(items, 64)
    assert sorted(place for row in rows for place in row.members) == list(range(50))
    for row in rows:
        expected = [ids for place in row.members for ids in items[place].token_ids]
        found = np.split(row.input_ids, row.cu_seqlens[1:-1])
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_a_step_does_not_depend_on_how_pairs_share_rows(tiny_checkpoint):
    tokenizer = load_tokenizer(tiny_checkpoint)

    def item(record):
        texts = (record.chosen, record.rejected)
        return Scored(token_ids=tuple(np.array(scored_ids(tokenizer, record.messages, text)) for text in texts))

    items = [item(pair(index)) for index in range(6)]
    found = []
    for capacity in (64, 4096):
        trainer = RewardTrainer(str(tiny_checkpoint), OptimizerConfig(lr=1e-3), device="cpu", drop_mtp=True, seed=0)
        metrics = trainer.step(pack_scored(items, capacity), 1e-3)
        found.append((metrics["loss/preference"], metrics["optimizer/grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# --- what is measured --------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_rank_correlation_is_spearmans(first, second):
    second = second[: len(first)]
    found = rank_correlation(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
        return
    pandas_like = [np.array([np.mean([sorted(v).index(x), len(v) - 1 - sorted(v)[::-1].index(x)]) for x in v])
                   for v in (first, second)]  # fmt: skip
    assert found == pytest.approx(float(np.corrcoef(*pandas_like)[0, 1]), abs=1e-9)


def test_a_calibrated_model_has_no_calibration_error_and_a_sure_one_has():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-logits))
    margins = np.where(right, logits, -logits)
    assert calibration_error(margins) < 0.02
    assert calibration_error(margins * 20) > 0.1
    assert calibration_error(np.full(9, -40.0)) == pytest.approx(1), "always sure and always wrong"


def test_length_alone_shows_in_the_measures():
    judged = [
        Judged(record=pair(i), scores=(float(len(pair(i).chosen)), float(len(pair(i).rejected)))) for i in range(9)
    ]
    found = measures(judged)
    assert found["length_correlation"] == pytest.approx(1)
    assert found["accuracy"] == pytest.approx(found["longer_is_chosen"], abs=0.2)
    by_truth = measures([Judged(record=pair(i), scores=(1.0, 0.0)) for i in range(9)])
    assert by_truth["accuracy"] == 1 and by_truth["truth_correlation"] > 0.7


def test_rewards_are_bounded_and_keep_the_order():
    helpful = RewardDescription(objective="helpful", mean=2.0, std=4.0)
    safety = RewardDescription(objective="safety", mean=2.0, std=4.0)
    assert helpful.bounded(2.0) == 0.5 and safety.bounded(0.0) == 0.5
    assert RewardDescription(objective="judgement", mean=2.0, std=4.0).bounded(0.0) == 0.5, "a probability"
    assert 0 <= helpful.bounded(-1e9) < helpful.bounded(1.0) < helpful.bounded(7.0) < helpful.bounded(1e9) <= 1


# --- the stage ---------------------------------------------------------------------------------------------------


def test_prompts_are_in_one_part_only_and_long_records_are_left_out(tiny_checkpoint, datasets, tmp_path):
    examples = load_examples(config(max_length=60), tiny_checkpoint, datasets["helpful"], 3)
    assert examples.too_long > 0
    everything = load_examples(config(), tiny_checkpoint, datasets["helpful"], 3)
    assert len(everything.train) + len(everything.held_out) + everything.too_long == 40
    again = save(tmp_path / "twice", [pair(index % 20) for index in range(39, -1, -1)])
    prompts = {record.prompt for record, _ in load_examples(config(), tiny_checkpoint, again, 3).held_out}
    held_out = {record.prompt for record, _ in everything.held_out}
    assert prompts == held_out & {pair(index).prompt for index in range(20)}


def test_rows_that_are_no_record_are_counted(tiny_checkpoint, tmp_path):
    folder = save(tmp_path / "pairs", [pair(index) for index in range(40)])
    rows = pq.read_table(folder / "data.parquet").to_pylist()
    for row in rows[:3]:
        row["chosen"] = row["rejected"]
    pq.write_table(pa.Table.from_pylist([*rows, {**rows[5], "chosen": " "}]), folder / "data.parquet")
    examples = load_examples(config(), tiny_checkpoint, folder, 3)
    assert (
        examples.refused == {"identical": 3, "empty": 1}
        and examples.too_long + sum(map(len, (examples.train, examples.held_out))) == 37
    )


def test_a_dataset_of_the_other_kind_is_refused(tiny_checkpoint, datasets):
    with pytest.raises(StageError, match=r"objective safety: .*hold no safety labels"):
        load_examples(config(objective="safety"), tiny_checkpoint, datasets["helpful"], 3)


def test_labels_of_judgements_and_of_safety_train_different_models(tiny_checkpoint, datasets):
    examples = load_examples(config(objective="judgement"), tiny_checkpoint, datasets["judgement"], 3)
    assert {item.safe for item in examples.train} == {True, False}
    with pytest.raises(StageError, match=r"objective safety: .* labels right judgements; take objective: judgement"):
        load_examples(config(objective="safety"), tiny_checkpoint, datasets["judgement"], 3)
    with pytest.raises(StageError, match=r"objective judgement: .* labels safe responses; take objective: safety"):
        load_examples(config(objective="judgement"), tiny_checkpoint, datasets["safety"], 3)
    with pytest.raises(StageError, match=r"objective judgement: .*hold no safety labels"):
        load_examples(config(objective="judgement"), tiny_checkpoint, datasets["helpful"], 3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["helpful", "safety"])
def test_a_cut_off_run_ends_with_the_same_model(tiny_checkpoint, datasets, tmp_path, ray_session, objective):
    stage = config(objective=objective, epochs=2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_stage(stage, context(whole, tiny_checkpoint, datasets[objective]))

    def kill_at_5(event):
        if event["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, context(cut, tiny_checkpoint, datasets[objective], kill_at_5))
    run_stage(stage, context(cut, tiny_checkpoint, datasets[objective]))
    for name in ("reward_head/weight.safetensors", "model.safetensors", "reward_model.json", METRICS):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert artifact_fault(whole, "reward_model") is None
    assert "without the head" in artifact_fault(tiny_checkpoint, "reward_model")
    assert json.loads((whole / "stats.json").read_text())["held_out"] > 0

    # The scorer reads what the trainer wrote: held-out accuracy comes out again.
    scorer = RewardScorer(str(whole), row_tokens=128)
    examples = load_examples(stage, tiny_checkpoint, datasets[objective], 3)
    conversations = [
        (record.messages, text)
        for record, _ in examples.held_out
        for text in ((record.chosen, record.rejected) if objective == "helpful" else (record.response,))
    ]
    scores = scorer.raw_scores(conversations)
    description = load_description(whole)
    assert np.mean(scores) == pytest.approx(description.mean, abs=1e-4)
    assert len(load_head(whole).weight_D) == 64
    alone = [scorer.score([each])[0] for each in conversations[:3]]
    assert alone == pytest.approx(scorer.score(conversations)[:3], abs=1e-5)
    assert all(0 <= value <= 1 for value in alone)
    too_long = [(conversations[0][0], "word " * 500)]
    assert scorer.score([*too_long, conversations[0]])[0] is None
