"""Which engine hosts which architecture: the table of docs/rollouts.md, cell by cell, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from models import checkpoint as checkpoints
from models.attention import NAME, PackedLayout
from models.checkpoint import load_model
from tests.architectures import CONFIGS, make_architecture, probe, reference

ROOT = Path(__file__).resolve().parents[1]
# model_type: {engine: what its cell says}; after "no: " stands a part of the sentence that refuses it.
TABLE = {
    "llama": {"transformers": "yes", "vllm": "yes"},
    "qwen2": {"transformers": "yes", "vllm": "yes"},
    "qwen3": {"transformers": "yes", "vllm": "yes"},
    "qwen3_moe": {"transformers": "yes", "vllm": "yes"},
    "deepseek_v2": {"transformers": "yes", "vllm": "yes"},
    "deepseek_v3": {"transformers": "yes", "vllm": "yes"},
    "deepseek_v32": {"transformers": "yes, up to `index_topk` tokens", "vllm": "no: there is no sparse attention"},
    "deepseek_v4": {"transformers": "yes", "vllm": "no: its kernels there need AMX and keep keys in FP8"},
}
MOE = {"qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they bring in models of this size, much more beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=TABLE)
def model_type(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(model_type, tmp_path_factory) -> Path:
    return make_architecture(tmp_path_factory.mktemp(model_type) / "checkpoint", model_type)


def check(found: dict, cell: str, model_type: str, engine: str) -> None:
    """float32: logprobs within 2e-5 nats of transformers' eager forward, before and after a weight sync."""
    if cell.startswith("no: "):
        assert cell.removeprefix("no: ") in found["refused"]
        return
    assert "refused" not in found, found
    assert found["changed"]
    assert max(found["gap"], found["gap_after_sync"]) <= 2e-5
    if engine == "vllm" and model_type in MOE:
        assert (found["moe_layers"], found["routed"], found["routed_after_sync"]) == (2, 1.0, 1.0)


def test_transformers_engine(model_type, checkpoint):
    check(probe("transformers", str(checkpoint)), TABLE[model_type]["transformers"], model_type, "transformers")


@pytest.mark.slow
def test_vllm_engine_on_cpu(model_type, checkpoint):
    pytest.importorskip("vllm")
    command = [sys.executable, "-m", "tests.architectures", "vllm", str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    check(json.loads(done.stdout.splitlines()[-1]), TABLE[model_type]["vllm"], model_type, "vllm")


def test_the_docs_say_the_same():
    page = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \w[^|]* \(`(\w+)`\) \| ((?:yes|no)[^|]*) \| ((?:yes|no)[^|]*) \|$", page, re.MULTILINE)
    assert {kind: {"transformers": ours, "vllm": theirs} for kind, ours, theirs in rows} == TABLE
    assert set(TABLE) == set(CONFIGS)


# --- what our attention does not compute ---

WINDOW = {"use_sliding_window": True, "max_window_layers": 1}


def gap(folder: Path) -> float:
    """Largest difference of logits, our attention against transformers' own, in a sequence that fills the context."""
    ids = torch.randint(8, 300, (1, 128), generator=torch.Generator().manual_seed(0))
    layout = PackedLayout.from_lengths([128])
    with torch.no_grad():
        ours = load_model(folder).eval()(input_ids=ids, use_cache=False, layout=layout).logits
        return float((ours - reference(str(folder))(ids, use_cache=False).logits).abs().max() / ours.abs().max())


@pytest.mark.parametrize(("kind", "name"), [("qwen2", "sliding_window"), ("deepseek_v32", "index_topk")])
def test_limited_attention_is_exact_in_reach_and_refused_beyond(kind, name, tmp_path, monkeypatch):
    more = WINDOW if kind == "qwen2" else {}
    assert gap(make_architecture(tmp_path / "within", kind, **more | {name: 128})) <= 5e-5
    beyond = make_architecture(tmp_path / "beyond", kind, **more | {name: 64})
    said = rf"attends to at most 64 earlier tokens \({name}\) of a context of 128, .* set max_position_embeddings .* 64"
    with pytest.raises(ValueError, match=said):
        load_model(beyond)
    monkeypatch.setattr(checkpoints, "check_architecture", lambda config, indexed: None)
    assert gap(beyond) > 1e-2  # it would have been wrong without a word


LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 64}, r"at most 64 earlier tokens"),
        ("gpt_oss", {}, r"cannot be trained or sampled here: it has attention sinks"),
        ("gemma2", {}, r"caps attention scores"),
        ("granite", {}, r"nobody has checked .* take a model of type llama, .* or add it to CONFIGS in tests/arch"),
        (
            "llama",
            {"rope_parameters": LONGROPE | {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16}},
            r"rotary embeddings \(longrope\) that depend on how long",
        ),
    ],
)
def test_other_attention_is_refused_before_anything_is_read(kind, changes, said, tmp_path):
    common = {"hidden_size": 64, "max_position_embeddings": 128}
    AutoConfig.for_model(kind, **common | CONFIGS.get(kind, {}) | changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path)


def test_layers_without_the_window_need_no_refusal():
    config = AutoConfig.for_model("qwen2", num_hidden_layers=3, sliding_window=8, **WINDOW | {"max_window_layers": 3})
    checkpoints.check_architecture(config)


def test_what_attention_does_not_heed_it_refuses_at_the_call():
    """The second line, for a model that did not come through load_model."""
    config = AutoConfig.for_model(
        "gpt_oss", vocab_size=340, hidden_size=64, num_hidden_layers=1, intermediate_size=96, num_local_experts=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
    with pytest.raises(ValueError, match="does not heed s_aux, which GptOssAttention relies on"):
        model(torch.tensor([[9, 10]]), use_cache=False, layout=PackedLayout.from_lengths([2]))


# --- what vLLM's CPU kernels do not take ---


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (
            "deepseek_v3",
            {"kv_lora_rank": 256},
            r"MLA latents must be 512 \+ 64, not 256 \+ 64; use generator\.engine=t",
        ),
        ("llama", {"head_dim": 16}, r"heads must be 32, 64, .* or 512 wide, not 16"),
    ],
)
def test_shapes_without_a_kernel_are_refused(kind, changes, said):
    pytest.importorskip("vllm")
    from rollouts.vllm_cpu import check_architecture

    with pytest.raises(ValueError, match=said):
        check_architecture(AutoConfig.for_model(kind, **CONFIGS[kind] | changes))
