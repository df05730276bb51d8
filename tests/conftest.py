"""Very small models with every part of the real ones, and one Ray for the tests that need processes."""

import os
import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("r1", deadline=None)  # how long an example takes says nothing of what it asserts
settings.load_profile("r1")

TESTS = Path(__file__).parent
# Whoever starts Ray first in a process, a fixture or a stage: its workers can import the modules in tests/.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
sys.path.append(str(TESTS))
LONGEST = ("test_recipes_smoke.py", "test_rl_train.py", "test_rl_vllm.py")


def make_checkpoint(folder: Path, **shape) -> Path:
    """A checkpoint of random weights, strong enough that attention is peaked and the next token is far from uniform."""
    import torch

    from data.corpus import documents
    from models.checkpoint import save_model
    from models.config import TinyModelConfig
    from models.tiny import build_model, build_tokenizer

    small = {
        "vocab_size": 340, "hidden_size": 64, "num_layers": 3, "intermediate_size": 96, "expert_size": 16,
        "max_length": 128,
    }  # fmt: skip
    config = TinyModelConfig(**small | shape)
    texts = [document.text for document in islice(documents("tests"), 60)]
    tokenizer = build_tokenizer(texts, config)
    model, mtp = build_model(config, tokenizer, seed=0)
    with torch.no_grad():
        for module in (model, mtp) if mtp is not None else (model,):
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter *= 25 if ".q_" in name else 5
    save_model(folder, model, tokenizer, mtp)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first: with two workers, one would else be left with them at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """DeepSeek-V3: MLA, one dense and two MoE layers, MTP."""
    return make_checkpoint(tmp_path_factory.mktemp("deepseek") / "checkpoint")


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory) -> Path:
    """A dense Llama of the same size."""
    return make_checkpoint(tmp_path_factory.mktemp("llama") / "checkpoint", architecture="llama", num_heads=2)


@pytest.fixture(scope="session")
def tied_checkpoint(tmp_path_factory) -> Path:
    """A Llama whose input and output embeddings are one tensor."""
    folder = tmp_path_factory.mktemp("tied") / "checkpoint"
    return make_checkpoint(folder, architecture="llama", num_heads=2, tie_embeddings=True)


@pytest.fixture(scope="session")
def v4_checkpoint(tmp_path_factory) -> Path:
    """DeepSeek-V4: every kind of attention layer, hash routing, hyper-connections."""
    from tests.architectures import make_architecture

    return make_architecture(tmp_path_factory.mktemp("v4") / "checkpoint", "deepseek_v4")


@pytest.fixture(scope="session")
def ray_session():
    """One local Ray for all tests."""
    pytest.importorskip("ray")
    from cluster.actors import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()
