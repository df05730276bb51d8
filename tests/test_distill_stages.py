"""The stages of distillation by a teacher's probabilities, with their real processes, on very small models."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config import ProblemSource
from data.problem_pool import ProblemsConfig
from data.write import DataCard, write_dataset
from distill.config import DistillConfig, KLConfig, OnPolicyDistillConfig, TeacherLogprobsConfig
from distill.on_policy import run as run_on_policy
from distill.stored import run as run_stored
from distill.train import run as run_distill
from rollouts.config import RolloutConfig
from tests.conftest import make_checkpoint
from training.config import OptimizerConfig, TrainerConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

K = 12
TRAINER = TrainerConfig(device="cpu", threads=1, row_tokens=256, checkpoint_every=2)
DISTILL = DistillConfig(
    epochs=3, batch_size=4, optimizer=OptimizerConfig(lr=3e-3), trainer=TRAINER, kl=KLConfig(top_k=K)
)
ON_POLICY = OnPolicyDistillConfig(
    steps=5,
    questions_per_step=3,
    samples_per_question=2,
    problems=ProblemsConfig(families=("chain_sum", "sorting"), levels=(1,)),
    weights={"chain_sum": {"one": 1.0}, "sorting": {"one": 0.25, "two": 0.75}},
    rollout=RolloutConfig(max_new_tokens=8),
    optimizer=OptimizerConfig(lr=3e-3),
    sample_in_trainer=True,
    trainer=TRAINER,
)
ROWS = [
    {
        "id": f"row-{i}",
        "messages": [
            {"role": "user", "content": f"What is {i}+{i + 1}?"},
            {"role": "assistant", "content": f"<think>\nThen {i}+{i + 1}={2 * i + 1}.\n</think>\nIt is {2 * i + 1}."},
        ],
        "domain": "chain_sum",
        "language": "en",
        "source": "test",
    }
    for i in range(7)
]


def context(output: Path, report=None, **inputs: Path) -> StageContext:
    output.mkdir(parents=True, exist_ok=True)
    roles = {role.replace("__", "."): path for role, path in inputs.items()}
    return StageContext(name="student", inputs=roles, output=output, seed=3, report=report or (lambda event: None))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_dataset(folder, ROWS, DataCard(n_rows=len(ROWS)))
    return folder


def same_results(a: Path, b: Path) -> None:
    for name in ("model.safetensors", "metrics.jsonl", "stats.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.slow
def test_a_stored_teacher_teaches_what_an_asked_one_does(
    ray_session, dataset, llama_checkpoint, tiny_checkpoint, tmp_path
):
    inputs = {"student": llama_checkpoint, "teacher": tiny_checkpoint}
    run_distill(DISTILL, context(tmp_path / "asked", dataset=dataset, **inputs))
    stored = tmp_path / "stored"
    settings = TeacherLogprobsConfig(top_k=K + 3, chunk_rows=3)
    run_stored(settings, context(stored, teacher=tiny_checkpoint, dataset=dataset))
    assert not (stored / ".parts").exists()
    table = pq.read_table(stored / "data.parquet").to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in ROWS]
    assert all(len(row["teacher_ids"]) == 4 * (K + 3) * sum(row["targets"]) for row in table)
    run_distill(DISTILL, context(tmp_path / "read", student=llama_checkpoint, dataset=stored))
    losses = [[row["loss/kl"] for row in read_log(tmp_path / name / "metrics.jsonl")] for name in ("asked", "read")]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][-1] < losses[0][0]
    with pytest.raises(StageError, match="set kl to learn them, or give the dataset that it was made of"):
        run_distill(
            DISTILL.model_copy(update={"kl": None}),
            context(tmp_path / "text", student=llama_checkpoint, dataset=stored),
        )
    with pytest.raises(StageError, match=r"holds 15 tokens per place; set kl.top_k to 15 or less"):
        run_distill(
            DISTILL.model_copy(update={"kl": KLConfig()}),
            context(tmp_path / "whole", student=llama_checkpoint, dataset=stored),
        )


@pytest.mark.slow
def test_on_policy_distillation_goes_on_bit_for_bit(ray_session, llama_checkpoint, tiny_checkpoint, tmp_path):
    inputs = {"student": llama_checkpoint, "teachers__one": tiny_checkpoint, "teachers__two": llama_checkpoint}
    run_on_policy(ON_POLICY, context(tmp_path / "undisturbed", **inputs))
    log = read_log(tmp_path / "undisturbed" / "metrics.jsonl")
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]
    assert all(row["experience/sampled"] == 6 and row["experience/tokens"] == row["tokens/targets"] for row in log)
    assert log[0]["kl/two"] == pytest.approx(0, abs=1e-5)  # the student is that teacher, until its first step
    assert log[0]["kl/one"] > 0.1

    def cut(event):
        if event["step"] == 4 and event.get("phase") == "sampling":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_on_policy(ON_POLICY, context(tmp_path / "cut", report=cut, **inputs))
    run_on_policy(ON_POLICY, context(tmp_path / "cut", **inputs))
    same_results(tmp_path / "undisturbed", tmp_path / "cut")


def test_kl_needs_a_teacher_and_a_teacher_needs_kl(dataset, llama_checkpoint, tiny_checkpoint, tmp_path):
    with pytest.raises(StageError, match="has no logprobs of a teacher: give the input teacher"):
        run_distill(DISTILL, context(tmp_path, student=llama_checkpoint, dataset=dataset))
    with pytest.raises(StageError, match="not asked while kl is not set"):
        run_distill(
            DISTILL.model_copy(update={"kl": None}),
            context(tmp_path, student=llama_checkpoint, dataset=dataset, teacher=tiny_checkpoint),
        )


def test_weights_name_teachers_that_are_there(llama_checkpoint, tiny_checkpoint, tmp_path):
    inputs = {"student": llama_checkpoint, "teachers__two": tiny_checkpoint}
    with pytest.raises(StageError, match=r"weights\.chain_sum names one, and the input teachers has two"):
        run_on_policy(ON_POLICY, context(tmp_path, **inputs))


def test_weights_name_domains_that_files_have(llama_checkpoint, tiny_checkpoint, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "answer": "So: 2\n#### 2"}))
    problems = ProblemsConfig(sources=(ProblemSource(path=str(file)),))
    config = ON_POLICY.model_copy(update={"problems": problems, "weights": {"math": {"one": 1.0}}})
    inputs = {"student": llama_checkpoint, "teachers__one": tiny_checkpoint}
    with pytest.raises(StageError, match=r"weights names the domain math, and the problems have gsm8k"):
        run_on_policy(config, context(tmp_path / "run", **inputs))


@pytest.mark.slow
def test_a_teacher_of_other_tokens_is_refused(ray_session, dataset, llama_checkpoint, tmp_path):
    other = make_checkpoint(tmp_path / "other", vocab_size=330)
    with pytest.raises(StageError, match=r"differ in \d+ of 340 tokens.*distil the teacher's text instead"):
        run_distill(DISTILL, context(tmp_path / "run", student=llama_checkpoint, dataset=dataset, teacher=other))
