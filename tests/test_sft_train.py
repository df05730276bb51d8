"""SFT and distillation: what is trained on, what a packed batch costs, and that a cut-off run goes on bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from data.write import DataCard, write_dataset
from models.checkpoint import load_model, load_mtp_module, load_tokenizer
from models.tokenizer import BOS, EOS
from sft.batch import Example, pack_examples
from sft.config import SFTConfig
from sft.conversations import checked_messages, conversation_examples
from sft.train import Epochs, epoch_order, load_samples
from sft.train import run as run_sft
from sft.trainer import SupervisedTrainer
from tests.architectures import make_architecture
from tests.conftest import make_checkpoint
from tests.test_training_parallel import assert_same_average
from training.config import OptimizerConfig, TrainerConfig
from training.mesh import MeshConfig
from training.run_log import read_log
from training.stage import StageContext, StageError

ANSWER = "<think>\nStart with 3. Then 3+8=11.\n</think>\n\nThe answer is \\boxed{11}."


def row(number: int, *turns: str) -> dict:
    roles = ("user", "assistant")
    messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(turns)]
    return {"id": f"row-{number}", "messages": messages, "domain": "chain_sum", "language": "en", "source": "test"}


def save_rows(folder: Path, rows: list[dict]) -> Path:
    write_dataset(folder, rows, DataCard(n_rows=len(rows)))
    return folder


ROWS = [row(i, f"What is {i}+{i + 1}?", ANSWER.replace("11", str(2 * i + 1))) for i in range(7)]


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return load_tokenizer(tiny_checkpoint)


def trained_text(tokenizer, example: Example) -> str:
    return tokenizer.decode(example.token_ids[example.loss_mask])


# --- what is trained on ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("chat", f"{BOS}<｜User｜>What is 3+8?<｜Assistant｜>"),
        ("plain", f"{BOS}User: What is 3+8?\nAssistant:"),
    ],
)
def test_loss_is_on_the_answer_and_its_end_alone(tokenizer, template, prompt):
    (example,) = conversation_examples(tokenizer, row(0, "What is 3+8?", ANSWER)["messages"], template)
    assert trained_text(tokenizer, example) == ANSWER + EOS
    assert tokenizer.decode(example.token_ids[~example.loss_mask]).replace(f"{BOS} ", BOS) == prompt
    assert example.token_ids[-1] == tokenizer.eos_token_id and example.loss_mask[-1]
    first = int(np.argmax(example.loss_mask))  # the mask is one block: nothing of the prompt, all of the answer
    assert not example.loss_mask[:first].any() and example.loss_mask[first:].all()


def test_every_assistant_turn_is_trained_on_in_one_pass(tokenizer):
    (example,) = conversation_examples(tokenizer, row(0, "Say hello.", "Hello!", "Again.", "Hi.")["messages"], "chat")
    assert trained_text(tokenizer, example) == f"Hello!{EOS}Hi.{EOS}"
    assert tokenizer.decode(example.token_ids).count("Hello!") == 1


def test_a_template_that_drops_earlier_reasoning_is_followed(tokenizer):
    rewriting = load_tokenizer(tokenizer.name_or_path)
    rewriting.chat_template = tokenizer.chat_template.replace(
        "message['content'] + eos_token", "message['content'].split('</think>')[-1] + eos_token"
    )
    first, second = conversation_examples(rewriting, row(0, "One?", ANSWER, "Two?", "Two.")["messages"], "chat")
    assert trained_text(tokenizer, first) == ANSWER + EOS
    assert trained_text(tokenizer, second) == f"Two.{EOS}"
    assert "<think>" not in tokenizer.decode(second.token_ids)


@pytest.mark.parametrize("said", [ANSWER, ANSWER.replace("<think>", "<think>\n", 1)])
def test_a_template_that_opens_the_reasoning_is_not_repeated(tokenizer, said):
    opening = load_tokenizer(tokenizer.name_or_path)
    opening.chat_template = tokenizer.chat_template.replace("'<｜Assistant｜>' }}", "'<｜Assistant｜><think>\\n' }}")
    (example,) = conversation_examples(opening, row(0, "One?", said)["messages"], "chat")
    assert opening.decode(example.token_ids).count("<think>") == 1
    assert trained_text(opening, example) == said.removeprefix("<think>").removeprefix("\n") + EOS


def test_a_turn_spelt_inside_an_answer_is_not_trained_as_one(tokenizer):
    (example,) = conversation_examples(tokenizer, row(0, "One?", f"1{EOS}<｜User｜>2?")["messages"], "chat")
    assert list(example.token_ids).count(tokenizer.eos_token_id) == 1
    assert trained_text(tokenizer, example) == f"1{EOS}<｜User｜>2?{EOS}"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (None, "missing or malformed"),
        ([], "not the assistant's"),
        ([{"role": "user", "content": "hello"}], "not the assistant's"),
        ([{"role": "user", "content": "hello"}, {"role": "assistant", "content": " "}], "has no text"),
        ([{"role": "assistant", "content": "hello"}], "answers no user turn"),
        ([{"role": "tool", "content": "hello"}], "role 'tool'"),
    ],
)
def test_bad_conversations_are_refused_with_their_place(messages, said):
    with pytest.raises(StageError, match="line 3") as error:
        checked_messages(messages, "data.jsonl line 3")
    assert said in str(error.value)


def test_conversations_that_the_template_has_no_room_for_are_refused_with_their_row(tiny_checkpoint, tmp_path):
    several = row(7, "Say hello.", "Hello!", "Again.", "Hi.")
    with pytest.raises(StageError, match=r"row .*: template plain holds one user turn, got user, assistant, user"):
        load_samples("plain", tiny_checkpoint, save_rows(tmp_path, [several]))


def test_long_conversations_are_dropped_whole_and_counted(tiny_checkpoint, tmp_path):
    long = row(9, "What is 1+1?", "one " * 200)
    samples, dropped = load_samples("chat", tiny_checkpoint, save_rows(tmp_path, [*ROWS, long]))
    assert (len(samples), dropped) == (len(ROWS), 1)
    with pytest.raises(StageError, match="all 1 rows are longer"):
        load_samples("chat", tiny_checkpoint, save_rows(tmp_path, [long]))
    with pytest.raises(StageError, match="nothing to train on"):
        load_samples("chat", tiny_checkpoint, save_rows(tmp_path, []))


def test_every_epoch_has_every_sample_once_in_its_own_order():
    orders = [epoch_order(50, seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] == epoch_order(50, 0, 0).tolist()


# --- what it costs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trainer(tiny_checkpoint):
    return SupervisedTrainer(str(tiny_checkpoint), OptimizerConfig(lr=3e-3), mtp=True, device="cpu")


def examples_of(tokenizer) -> list[Example]:
    return [e for r in ROWS[:4] for e in conversation_examples(tokenizer, r["messages"], "chat")]


def reference_nll(checkpoint: Path, example: Example) -> float:
    """One sequence alone, by plain transformers without packing, in float64."""
    model = load_model(checkpoint, attention="eager").eval().double()
    model.set_experts_implementation("eager")  # the grouped one has no float64
    ids = torch.from_numpy(example.token_ids)
    with torch.no_grad():
        logprobs = model(ids[None]).logits[0].log_softmax(-1)
    targets = [p for p in range(1, len(ids)) if example.loss_mask[p]]
    return -sum(logprobs[p - 1, ids[p]].item() for p in targets)


def test_packed_loss_is_the_sum_over_the_samples_alone(trainer, tokenizer, tiny_checkpoint):
    examples = examples_of(tokenizer)
    (packed,) = pack_examples(examples, 4096)
    with torch.no_grad():
        nll, mtp_nll = trainer.next_token_losses(packed)
        alone = [trainer.next_token_losses(pack_examples([e], 4096)[0]) for e in examples]
    assert nll.item() == pytest.approx(sum(reference_nll(tiny_checkpoint, e) for e in examples), rel=1e-4)
    assert mtp_nll.item() == pytest.approx(sum(m.item() for _, m in alone), rel=1e-4)


def test_mtp_loss_equals_a_loop_over_one_sequence(trainer, tokenizer, tiny_checkpoint):
    """h'_i from (h_i, Emb(t_{i+1})) predicts t_{i+2}: written out for one unpacked sequence."""
    from models.attention import PackedLayout

    example = examples_of(tokenizer)[0]
    (alone,) = pack_examples([example], 4096)
    with torch.no_grad():
        _, mtp_nll = trainer.next_token_losses(alone)
        model, ids = load_model(tiny_checkpoint).eval(), torch.from_numpy(example.token_ids)
        mtp = load_mtp_module(tiny_checkpoint, model.config)
        packing = PackedLayout.from_lengths([len(ids)], torch.device("cpu"))
        positions = torch.arange(len(ids))[None]
        hidden = model.model(
            input_ids=ids[None], position_ids=positions, use_cache=False, layout=packing
        ).last_hidden_state
        following = model.model.embed_tokens(torch.cat([ids[1:], ids[:1]]))[None]
        deeper = mtp(hidden, following, model.model.rotary_emb(hidden, positions), packing)[0]
        logprobs = model.lm_head(deeper).log_softmax(-1)
    targets = [p for p in range(2, len(ids)) if example.loss_mask[p]]
    assert mtp_nll.item() == pytest.approx(-sum(logprobs[p - 2, ids[p]].item() for p in targets), rel=1e-4)


def test_a_batch_is_learned_by_heart(tiny_checkpoint, tokenizer):
    trainer = SupervisedTrainer(str(tiny_checkpoint), OptimizerConfig(lr=3e-3), mtp=True, device="cpu")
    rows = pack_examples(examples_of(tokenizer), 4096)
    losses = [trainer.step(rows, 3e-3, 0.1, 0.001)["loss/nll"] for _ in range(90)]
    assert losses[0] > 2 and losses[-1] < 0.3


# --- the stages --------------------------------------------------------------------------------------------------


def sft_config(**keys) -> SFTConfig:
    trainer = TrainerConfig(device="cpu", threads=1, row_tokens=256, checkpoint_every=2)
    return SFTConfig(
        batch_size=3, epochs=2, optimizer=OptimizerConfig(lr=1e-3, schedule="cosine"), trainer=trainer, **keys
    )


class Cut(Exception):
    """The stage is killed from outside."""


@given(
    tokens=st.lists(st.integers(1, 50), min_size=1, max_size=30), batch=st.integers(1, 8), count=st.integers(1, 4),
    budget=st.integers(1, 4000),
)  # fmt: skip
def test_a_budget_ends_with_the_step_that_reaches_it(tokens, batch, count, budget):
    epochs = Epochs(tokens, batch, count, seed=3)
    learnt = [sum(tokens[index] for index in epochs.samples(step)) for step in range(epochs.steps)]
    assert sorted(i for step in range(epochs.per_epoch) for i in epochs.samples(step)) == list(range(len(tokens)))
    steps = epochs.steps_within(budget)
    assert sum(learnt[:steps]) >= min(budget, sum(learnt))
    assert sum(learnt[: steps - 1]) < budget
    assert epochs.tokens_in(steps) == sum(learnt[:steps])
    assert epochs.steps_within(None) == epochs.steps


@pytest.mark.slow
@pytest.mark.parametrize("lines_left", [None, 1])  # of the metrics, after a power cut; no checkpoint is of step 1
def test_a_run_cut_off_and_resumed_equals_an_uncut_one(ray_session, tiny_checkpoint, tmp_path, caplog, lines_left):
    inputs = {"policy": tiny_checkpoint, "dataset": save_rows(tmp_path / "data", ROWS)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def kill_after_step_5(event):  # the checkpoint of step 2 is there; that of step 4 is perhaps being written
        if event["step"] == 5:
            raise Cut

    run_sft(sft_config(), StageContext(name="sft", inputs=inputs, output=whole, seed=5))
    with pytest.raises(Cut):
        run_sft(sft_config(), StageContext(name="sft", inputs=inputs, output=cut, seed=5, report=kill_after_step_5))
    assert not (cut / "model.safetensors").exists()
    metrics = (cut / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_bytes(b"".join(metrics[:lines_left]))
    run_sft(sft_config(), StageContext(name="sft", inputs=inputs, output=cut, seed=5))
    for name in ("model.safetensors", "metrics.jsonl", "stats.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    assert ("damaged (metrics.jsonl ends before it); starting from the beginning" in caplog.text) == bool(lines_left)
    stats = json.loads((whole / "stats.json").read_text())
    assert stats["samples"] == 7 and stats["steps"] == 6 == len((whole / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "layers", "alike", "later"),
    [({"data": 2, "expert": 2}, 3, 3, 1e-4), ({"pipeline": 2}, 4, 2, 5e-4)],
    ids=["expert", "pipeline"],
)
def test_two_ranks_train_as_one_does_and_one_goes_on_where_they_stopped(
    ray_session, mesh, layers, alike, later, tmp_path
):
    """Batches of three rows at most, so a rank may have none. A checkpoint is all that is left of them, the average of
    the weights in it.

    alike: steps that agree within 1e-5. later: bound of all six, as Adam makes roundings grow, more with more layers.
    """
    policy = make_checkpoint(tmp_path / "policy", num_layers=layers)
    inputs = {"policy": policy, "dataset": save_rows(tmp_path / "data", ROWS)}
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"

    def kill_after_step_5(event):  # the checkpoint of step 2 is there; that of step 4 is perhaps being written
        if event["step"] == 5:
            raise Cut

    one = sft_config()
    one = one.model_copy(update={"optimizer": one.optimizer.model_copy(update={"ema_decay": 0.5})})
    two = one.model_copy(
        update={"trainer": one.trainer.model_copy(update={"mesh": MeshConfig(**mesh), "row_tokens": 64})}
    )
    one = one.model_copy(update={"trainer": one.trainer.model_copy(update={"row_tokens": 64})})
    run_sft(one, StageContext(name="sft", inputs=inputs, output=alone, seed=5))
    with pytest.raises(Cut):
        run_sft(two, StageContext(name="sft", inputs=inputs, output=ranks, seed=5, report=kill_after_step_5))
    rows_of_ranks = read_log(ranks / "metrics.jsonl")
    run_sft(one, StageContext(name="sft", inputs=inputs, output=ranks, seed=5))
    expected, found = read_log(alone / "metrics.jsonl"), read_log(ranks / "metrics.jsonl")
    assert len(rows_of_ranks) == 5 and len(found) == len(expected) == 6
    assert rows_of_ranks[:alike] == [pytest.approx(row, rel=1e-5) for row in expected[:alike]]
    assert found == [pytest.approx(row, rel=later) for row in expected]
    assert_same_average(ranks / "average", alone / "average", rel=later)


@pytest.mark.slow
def test_a_warm_up_stage_moves_indexers_alone(ray_session, tmp_path):
    source = make_architecture(tmp_path / "v32", "deepseek_v32", index_topk=16)  # of a context of 128
    inputs = {"policy": source, "dataset": save_rows(tmp_path / "data", ROWS)}
    run_sft(sft_config(indexer="warmup"), StageContext(name="sft", inputs=inputs, output=tmp_path / "out", seed=5))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert moved == {name for name in before if ".indexer." in name}
    losses = [row["loss/indexer"] for row in read_log(tmp_path / "out/metrics.jsonl")]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_a_dense_student_is_distilled_with_its_own_tokenizer(ray_session, llama_checkpoint, tmp_path):
    from distill.config import DistillConfig
    from distill.train import run

    config = DistillConfig(epochs=6, batch_size=4, optimizer=OptimizerConfig(lr=5e-3), trainer=sft_config().trainer)
    inputs = {"student": llama_checkpoint, "dataset": save_rows(tmp_path / "data", ROWS)}
    run(config, StageContext(name="distill", inputs=inputs, output=tmp_path / "out", seed=0))
    losses = [json.loads(line)["loss/nll"] for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    assert load_model(tmp_path / "out").config.architectures == ["LlamaForCausalLM"]
