"""The models and the tokenizer that are made from scratch."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.chat import render_prompt
from data.corpus import documents
from models.config import TinyModelConfig
from models.mtp import MTPModule
from models.tiny import build_model, build_tokenizer
from models.tokenizer import ASSISTANT, BOS, EOS, THINKING_TAGS, USER

SHAPE = TinyModelConfig()


@pytest.fixture(scope="module")
def tokenizer():
    texts = [document.text for document in islice(documents("tests"), 400)]
    return build_tokenizer(texts, SHAPE)


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(SHAPE, tokenizer, seed=0)


def test_default_size(model):
    main, mtp = model
    total = sum(p.numel() for p in main.parameters()) + sum(p.numel() for p in mtp.parameters())
    assert 3e6 < total < 6e6


def test_every_part_of_deepseek_v3_is_there(model):
    main, mtp = model
    names = {name for name, _ in main.named_parameters()}
    for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"):
        assert f"model.layers.0.self_attn.{part}.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" in names  # the first layer is dense
    for layer in (1, 2, 3):
        assert f"model.layers.{layer}.mlp.gate.weight" in names
        assert f"model.layers.{layer}.mlp.shared_experts.gate_proj.weight" in names
    assert isinstance(mtp, MTPModule)


def test_config_has_what_other_engines_read(model):
    config = model[0].config.to_dict()
    expected = {
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "q_lora_rank": 64, "first_k_dense_replace": 1,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
        "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "tie_word_embeddings": False,
        "architectures": ["DeepseekV3ForCausalLM"],
    }  # fmt: skip
    assert {key: config.get(key) for key in expected} == expected


def test_a_seed_gives_the_same_weights(tokenizer, model):
    again, mtp = build_model(SHAPE, tokenizer, seed=0)
    other, _ = build_model(SHAPE, tokenizer, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model[0].parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model[1].parameters(), mtp.parameters(), strict=True))
    assert not torch.equal(other.lm_head.weight, again.lm_head.weight)


def test_fresh_weights_are_finite_and_near_uniform(model):
    main, mtp = model
    assert all(torch.isfinite(p).all() for part in (main, mtp) for p in part.parameters())
    with torch.no_grad():
        logits = main(torch.arange(10, 40)[None]).logits
    nll = torch.nn.functional.cross_entropy(logits[0], torch.arange(11, 41))
    assert float(nll) == pytest.approx(torch.log(torch.tensor(1024.0)).item(), abs=0.3)


def test_a_student_is_dense_and_has_no_mtp(tokenizer):
    student, mtp = build_model(TinyModelConfig(architecture="llama", tie_embeddings=True), tokenizer, seed=0)
    assert mtp is None
    assert student.lm_head.weight is student.model.embed_tokens.weight


# --- tokenizer ---


def test_vocabulary_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == SHAPE.vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(SHAPE.vocab_size))


def test_digits_are_single(tokenizer):
    ids = tokenizer("12345+67", add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([i]) for i in ids] == list("12345+67")


@pytest.mark.parametrize("tag", THINKING_TAGS)
def test_thinking_tags_are_single_and_survive_decoding(tokenizer, tag):
    ids = tokenizer(f"a{tag}b", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_tokens_to_ids(tag) in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{tag}b"


def test_special_tokens_are_dropped_when_decoding(tokenizer):
    ids = tokenizer(f"{USER}hi{ASSISTANT}there{EOS}")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hithere"


@given(st.text())
def test_any_text_survives(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_chat_template(tokenizer):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "U2"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"{BOS}S{USER}U1{ASSISTANT}A1{EOS}{USER}U2{ASSISTANT}"
    assert tokenizer.apply_chat_template(messages[:3], tokenize=False) == f"{BOS}S{USER}U1{ASSISTANT}A1{EOS}"


@pytest.mark.parametrize("template", ["chat", "plain", "r1_zero"])
def test_prompts_begin_with_one_bos_and_hold_the_question(tokenizer, template):
    question = "What is {3}+4?"  # braces are not slots
    ids = render_prompt(tokenizer, [{"role": "user", "content": question}], template)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert question in tokenizer.decode(ids)
    assert tokenizer.eos_token_id not in ids
