"""Models whose weights are read a layer at a time are, in the end, those whose weights are read at once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer, save_model
from models.late_weights import fill
from tests.architectures import CONFIGS, make_architecture
from tests.conftest import make_checkpoint
from tests.gloo_ranks import GlooRanks
from training.layers import PolicyPart

IDS = torch.randint(8, 300, (1, 30), generator=torch.Generator().manual_seed(0))


def in_memory(module: nn.Module) -> int:
    """Bytes of its weights that are anywhere."""
    return sum(p.nbytes for p in module.parameters() if not p.is_meta)


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request, tmp_path_factory):
    return make_architecture(tmp_path_factory.mktemp(request.param) / "checkpoint", request.param)


def test_the_same_model_in_the_end(checkpoint):
    """Of every architecture: dense, MoE, MLA, indexers, hyper-connections and hash tables."""
    whole, late = load_model(checkpoint), load_model(checkpoint, late=True)
    assert in_memory(late) == 0
    for layer in late.model.layers:
        before = in_memory(late)
        fill(late, layer)
        assert in_memory(late) - before == in_memory(layer) > 0
    fill(late, late)
    expected = whole.state_dict()
    assert late.state_dict().keys() == expected.keys()
    for name, tensor in late.state_dict().items():
        assert torch.equal(tensor, expected[name]) and tensor.dtype == expected[name].dtype, name
    layout = PackedLayout.from_lengths([IDS.shape[1]])
    with torch.no_grad():
        logits = [model(input_ids=IDS, use_cache=False, layout=layout).logits for model in (whole, late)]
    assert torch.equal(*logits)


def test_fp8_checkpoints_are_multiplied_out_on_the_way(tiny_checkpoint, tmp_path):
    save_model(tmp_path, load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint), dtype="fp8")
    whole, late = load_model(tmp_path), load_model(tmp_path, late=True)
    fill(late, late)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(late.state_dict()[name], tensor), name


def test_a_tied_head_is_the_embedding(tied_checkpoint):
    late = load_model(tied_checkpoint, late=True)
    fill(late, late)
    assert late.lm_head.weight is late.model.embed_tokens.weight
    assert torch.equal(late.lm_head.weight, load_model(tied_checkpoint).lm_head.weight)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tied_model_in_a_pipeline(tmp_path, rank):
    """Ranks above 0 have neither embedding nor head."""
    tied = {"architecture": "llama", "num_heads": 2, "tie_embeddings": True, "num_layers": 4}
    path = make_checkpoint(tmp_path / "tied", **tied)
    whole, late = (load_model(path, late=is_late) for is_late in (False, True))
    parts = [PolicyPart(model, None, rank, 2) for model in (whole, late)]
    fill(late, late)
    states = [part.state_dict() for part in parts]
    assert states[0].keys() == states[1].keys() and len(states[0]) > 3
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())


def test_checkpoints_that_are_quantised_otherwise_are_refused_as_ever(llama_checkpoint, tmp_path):
    """Their tensors have the same names, and other values."""
    save_model(tmp_path, load_model(llama_checkpoint), load_tokenizer(llama_checkpoint))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised by compressed-tensors"):
        load_model(tmp_path, late=True)


def test_what_is_frozen_stays_frozen(llama_checkpoint):
    late = load_model(llama_checkpoint, late=True).requires_grad_(False)
    fill(late, late)
    assert not any(p.requires_grad for p in late.parameters())


def test_weights_under_other_names_are_read_at_once(llama_checkpoint, tmp_path):
    """transformers knows older names, and files in pickle; it is asked then."""
    model = load_model(llama_checkpoint)
    save_model(tmp_path, model, load_tokenizer(llama_checkpoint))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = load_model(tmp_path, late=True)
    assert in_memory(found) == in_memory(model)
    assert torch.equal(found.lm_head.weight, model.lm_head.weight)


def test_a_file_that_changed_in_between(llama_checkpoint, tmp_path):
    save_model(tmp_path, load_model(llama_checkpoint), load_tokenizer(llama_checkpoint))
    late = load_model(tmp_path, late=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:3].clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(3,\)"):
        fill(late, late)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mesh"), [(2, {"data": 2}), (2, {"pipeline": 2}), (4, {"data": 4, "expert": 2})], ids=str
)
def test_no_rank_ever_has_the_whole_model(tmp_path, size, mesh):
    """One layer beside its own pieces; a rank of a pipeline its own layers, which are all that it reads."""
    path = make_checkpoint(tmp_path / "four_layers", num_layers=4)
    ranks = GlooRanks(size)
    try:
        for found in ranks.run(size, "tests.parallel_jobs:loading", str(path), mesh):
            layers = 2 if "pipeline" in mesh else 4
            assert found["layers_read"] == layers
            layer, outside = found["largest_layer"], found["outside_layers"]
            assert 0 < found["unsharded"] <= (max(layer, outside) if "data" in mesh else layers * layer + outside)
            assert found["unsharded"] < found["whole"]
    finally:
        ranks.close()
