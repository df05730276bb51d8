"""Adapters on several ranks: what one process computes, saves and sends. Real processes, gloo."""

import pytest
import torch
from safetensors.torch import load_file

from tests.gloo_ranks import GlooRanks
from tests.test_training_parallel import EP_OVER_FSDP, FSDP, assert_same_numbers, job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks():
    ranks = GlooRanks(4)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def one(ranks, tiny_checkpoint, tmp_path_factory):
    """(what one process found, the folder where it saved)."""
    folder = tmp_path_factory.mktemp("one")
    return ranks.alone(job("adapter_steps"), str(tiny_checkpoint), {}, str(folder)), folder


@pytest.mark.parametrize(("size", "mesh"), [FSDP, EP_OVER_FSDP])
def test_ranks_train_save_and_send_what_one_process_does(ranks, one, tiny_checkpoint, size, mesh, tmp_path):
    expected, folder = one
    for found in ranks.run(size, job("adapter_steps"), str(tiny_checkpoint), mesh, str(tmp_path)):
        for metrics, others in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_numbers(metrics, others)
        assert found["trained"] == expected["trained"]
    for file in ("hub/model.safetensors", "hub/adapter/adapter_model.safetensors", "average/model.safetensors"):
        tensors, others = load_file(tmp_path / file), load_file(folder / file)
        assert tensors.keys() == others.keys()
        for name, tensor in others.items():
            torch.testing.assert_close(tensors[name], tensor, atol=1e-4, rtol=0)  # lr is 1e-3
    sent = sorted((tmp_path / "sent").iterdir())
    assert [path.name for path in sent] == [path.name for path in sorted((folder / "sent").iterdir())]


def test_several_ranks_go_on_from_the_state_of_one(ranks, one, tiny_checkpoint):
    """The reference's adapters with it."""
    expected, folder = one
    for found in ranks.run(2, job("adapted_resume"), str(tiny_checkpoint), {"data": 2}, str(folder)):
        assert_same_numbers(found, expected["metrics"][2])


def test_bfloat16_multiplies_coarsely_and_merges_finely(ranks, one, tiny_checkpoint, tmp_path):
    expected, _ = one
    (found,) = ranks.run(1, job("adapter_steps"), str(tiny_checkpoint), {}, str(tmp_path), "bfloat16")
    entropies = [run["metrics"][0]["policy/entropy"] for run in (found, expected)]
    assert entropies[0] != entropies[1] and entropies[0] == pytest.approx(entropies[1], rel=0.01)
    assert found["trained"] == expected["trained"]
    base = load_file(tiny_checkpoint / "model.safetensors")
    merged = load_file(tmp_path / "hub" / "model.safetensors")
    for key, tensor in merged.items():
        change = (tensor - base[key]).abs().max()
        if "self_attn" in key and "norm" not in key and ".layers.3." not in key:
            assert 0 < change < 0.2 and (tensor != tensor.bfloat16()).any(), key
        else:
            assert change == 0, key
