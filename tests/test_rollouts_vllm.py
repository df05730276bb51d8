"""Where vLLM is wrong on CPU: each test fails when a way round stops working, or when it is no longer needed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from models.checkpoint import load_model
from models.weight_names import hub_views
from rollouts import vllm_cpu
from rollouts.records import Request, SamplingParams
from tests.vllm_engines import SMALL, vllm_engine

pytestmark = pytest.mark.slow
vllm = pytest.importorskip("vllm")
BASE = "recipes/tiny/base"
PROMPTS = [[9, 40, 300, 12], [77, 15, 201, 33, 8, 120, 90], [250] * 12]
PARAMS = SamplingParams(max_new_tokens=16, group_size=4, seed=1)


def requests():
    return [Request(key=f"p{i}", prompt_ids=ids) for i, ids in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return vllm_engine(tiny_checkpoint)


def gap(engine, model) -> float:
    """Largest difference of sampled logprobs, nats, from `model`'s own forward pass."""
    worst = 0.0
    for group in engine.sample(requests(), PARAMS):
        for completion in group.completions:
            ids = torch.tensor([*group.prompt_ids, *completion.token_ids])[None]
            with torch.no_grad():
                logits = model(ids).logits[0, len(group.prompt_ids) - 1 : -1].double()
            expected = torch.log_softmax(logits, -1)[range(len(completion.token_ids)), completion.token_ids]
            worst = max(worst, float(np.abs(expected.numpy() - completion.sampling_logprobs).max()))
    return worst


def eager(checkpoint):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()


def changed(checkpoint) -> dict[str, torch.Tensor]:
    weights = {name: tensor.clone() for name, tensor in hub_views(load_model(checkpoint)).items()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor * (1 + 0.2 * torch.randn(tensor.shape, generator=generator)) if tensor.ndim > 1 else tensor
        for name, tensor in weights.items()
    }


def test_logprobs_of_a_trained_model_are_those_of_transformers():
    """On the committed base, where no weight is exaggerated: within 1e-5."""
    assert gap(vllm_engine(BASE), eager(BASE)) <= 1e-5


RAW = """
import json, sys, vllm
llm = vllm.LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=64 << 20)
settings = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
[output] = llm.generate([{"prompt_token_ids": json.loads(sys.argv[2])}], settings, use_tqdm=False)
print(json.dumps([row[t].logprob for row, t in zip(output.prompt_logprobs[1:], json.loads(sys.argv[2])[1:])]))
"""


def test_rotary_embedding_is_wrong_without_the_way_round(tiny_checkpoint, engine):
    """1. Fails, too, once vLLM's own kernel is right: then the way round can go. (Rotary embeddings are shared by all
    engines of a process, hence another one.)"""
    ids = PROMPTS[1] * 3
    command = [sys.executable, "-c", RAW, str(tiny_checkpoint), json.dumps(ids)]
    environment = os.environ | vllm_cpu.environment()
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True).stdout
    raw = np.array(json.loads(said.splitlines()[-1]))
    [expected] = engine.score([ids])
    assert np.abs(raw - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "llama_checkpoint", "tied_checkpoint"])
def test_logprobs_are_right_after_an_update(kind, request):
    """2., and prefixes seen under the old weights, which dense models keep on CPU, do not serve the new ones."""
    checkpoint = request.getfixturevalue(kind)
    engine, model = vllm_engine(checkpoint), load_model(checkpoint, attention="eager").eval()
    new = changed(checkpoint)
    for name, view in hub_views(model).items():
        view.copy_(new[name])
    assert gap(engine, model) > 1e-3
    try:
        for version in (1, 2):  # the second one finds what the first one left
            engine.load_weights(new, version=version)
            assert gap(engine, model) <= 5e-5
    finally:
        engine.load_files(str(checkpoint), version=0)


def test_weights_may_cross_to_another_process_of_the_engine(engine, tiny_checkpoint, monkeypatch):
    """As on GPUs, where a parcel is pickled."""
    [expected] = engine.score([PROMPTS[1]])
    engine.load_weights(changed(tiny_checkpoint), version=1)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "on_cpu", False)
        engine.load_files(str(tiny_checkpoint), version=0)
    np.testing.assert_array_equal(engine.score([PROMPTS[1]])[0], expected)


UPDATED_WITHOUT = """
import sys
from rollouts import vllm_weights
from rollouts.vllm_generator import VLLMGenerator
vllm_weights.forget_packed_experts = lambda model: None
engine = VLLMGenerator(sys.argv[1], device="cpu", engine_args={"kv_cache_memory_bytes": 64 << 20})
before = engine.score([list(range(9, 40))])[0]
engine.load_files(sys.argv[1], version=1)
print(abs(engine.score([list(range(9, 40))])[0] - before).max())
"""


def test_experts_are_garbage_after_an_update_without_the_way_round(tiny_checkpoint):
    """2. Fails once they are not: then the way round can go. Depending on sizes it fails openly or silently."""
    command = [sys.executable, "-c", UPDATED_WITHOUT, str(tiny_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        assert "must match the size of tensor" in done.stderr
    else:
        assert float(done.stdout.splitlines()[-1]) > 1e-3


def test_vllms_own_routed_experts_are_still_not_for_cpu(tiny_checkpoint):
    """3. Fails once they are: then the capture can go."""
    with pytest.raises(Exception, match=r"(?i)triton|model runner v2"):
        vllm.LLM(
            model=str(tiny_checkpoint), dtype="float32", enforce_eager=True, enable_return_routed_experts=True, **SMALL
        )


def test_routed_experts_are_those_of_transformers(tiny_checkpoint, engine):
    model = eager(tiny_checkpoint)
    chosen: list[torch.Tensor] = []
    for layer in model.model.layers[1:]:
        layer.mlp.gate.register_forward_hook(lambda module, args, output: chosen.append(output[2]))
    wanted = SamplingParams(max_new_tokens=16, group_size=3, seed=2, return_routed_experts=True)
    for group in engine.sample(requests(), wanted):
        for completion in group.completions:
            chosen.clear()
            with torch.no_grad():
                model(torch.tensor([*group.prompt_ids, *completion.token_ids[:-1]])[None])
            expected = torch.stack(chosen, dim=1).sort(-1).values.numpy()
            assert completion.routed_experts.dtype == np.uint8
            np.testing.assert_array_equal(np.sort(completion.routed_experts, -1), expected)
    assert not engine.capture._wanted


def test_drafting_is_refused_with_the_reason(tiny_checkpoint):
    from rollouts.vllm_generator import VLLMGenerator

    drafts = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}
    with pytest.raises(ValueError, match=r"speculative_config: on CPU vLLM's drafts change the distribution"):
        VLLMGenerator(str(tiny_checkpoint), device="cpu", engine_args=drafts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_modle_len": 64}, r"max_modle_len: vLLM 0\.\d+\.\d+ has no such argument; did you mean max_model_len\?"),
        ({"compilation_config": {"level": 0}}, r"engine_args\.compilation_config is not yours to set on CPU"),
        ({"dtype": "float16"}, r"engine_args\.dtype is not yours to set: it follows generator\.dtype"),
    ],
)
def test_engine_arguments_are_checked(tiny_checkpoint, arguments, said):
    from rollouts.vllm_generator import VLLMGenerator

    with pytest.raises(ValueError, match=said):
        VLLMGenerator(str(tiny_checkpoint), device="cpu", engine_args=arguments)


def test_more_prompt_tokens_than_one_step_takes(llama_checkpoint):
    """4. Dense models have chunked prefill on CPU, unless told otherwise."""
    engine = vllm_engine(llama_checkpoint)
    many = [Request(key=f"m{i}", prompt_ids=[9 + i % 200, *range(20, 120)]) for i in range(100)]
    groups = engine.sample(many, SamplingParams(max_new_tokens=2, seed=1))
    alone = engine.sample(many[70:71], SamplingParams(max_new_tokens=2, seed=1))
    assert groups[70].completions[0].token_ids.tolist() == alone[0].completions[0].token_ids.tolist()


def test_an_unknown_version_is_refused_on_cpu():
    vllm_cpu.check_version(vllm.__version__)
    with pytest.raises(RuntimeError, match=r"vLLM 0\.99\.0 on CPU: the ways round .* 0\.32\.x alone"):
        vllm_cpu.check_version("0.99.0")


def test_weights_of_a_checkpoint_file_come_back(engine, tiny_checkpoint):
    before = [c.token_ids.tolist() for g in engine.sample(requests(), PARAMS) for c in g.completions]
    engine.load_weights(changed(tiny_checkpoint), version=1)
    assert before != [c.token_ids.tolist() for g in engine.sample(requests(), PARAMS) for c in g.completions]
    engine.load_weights(load_file(tiny_checkpoint / "model.safetensors"), version=0)
    assert before == [c.token_ids.tolist() for g in engine.sample(requests(), PARAMS) for c in g.completions]


@torch.no_grad()
def test_the_most_likely_tokens_of_every_place_are_those_of_the_model(engine, tiny_checkpoint):
    """What a teacher that is served tells its student (distill.teacher_process.ServedTeacher)."""
    model = load_model(tiny_checkpoint, "eager").eval()
    for ids, (top_ids, logprobs) in zip(PROMPTS[:2], engine.top_logprobs(PROMPTS[:2], 5), strict=True):
        assert top_ids.shape == logprobs.shape == (len(ids) - 1, 5)
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), -1)
        np.testing.assert_allclose(logprobs, expected.topk(5).values.numpy(), atol=1e-4)
        np.testing.assert_allclose(logprobs, expected.gather(1, torch.from_numpy(top_ids).long()).numpy(), atol=1e-4)
