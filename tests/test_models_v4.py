"""DeepSeek-V4: packed rows against transformers' own forward pass, its checkpoint names, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from fp8.config import Fp8Config
from fp8.convert import convert
from models.architectures import check_rounding
from models.attention import PackedLayout
from models.checkpoint import load_model, load_tokenizer, save_model, write_sharded
from models.routing import SequenceBalance, is_selection_bias, routers
from models.v4_attention import Tokens, attend
from models.weight_names import hub_pieces, hub_views, stored_weights
from rollouts.buckets import pack_weights
from tests.architectures import CONFIGS, reference

LENGTHS = [5, 23, 1, 17, 40, 2, 19, 22, 128]  # beyond the window (6), with none to many compressed keys (of 4 and 8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(v4_checkpoint):
    return v4_checkpoint


@pytest.fixture(scope="module")
def disturbed(checkpoint, tmp_path_factory):
    """The same with every number its own: norms, biases and sinks of new models are all alike."""
    model, generator = load_model(checkpoint), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    save_model(folder := tmp_path_factory.mktemp("v4") / "disturbed", model, load_tokenizer(checkpoint))
    return model, folder


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 300, (n,), generator=generator) for n in LENGTHS]


def packed(model) -> torch.Tensor:
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    layout = PackedLayout.from_lengths(LENGTHS)
    ids = torch.cat(sequences())[None]
    return model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout).logits[0]


# --- what is computed ---


def test_the_test_model_has_every_kind_of_layer(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    assert sorted(config.layer_types) == [
        "compressed_sparse_attention", "heavily_compressed_attention", "sliding_attention",
    ]  # fmt: skip
    assert config.mlp_layer_types == ["hash_moe", "moe", "moe"] and config.hc_mult == 2
    with torch.no_grad():
        weights = reference(str(checkpoint))(sequences()[-1][None], output_attentions=True).attentions
    assert min(float(layer.amax(-1).mean()) for layer in weights) > 0.5  # peaked: the wrong keys would be noticed


def test_packed_logits_and_gradients_are_those_of_transformers_one_sequence_at_a_time(checkpoint):
    ours, own = load_model(checkpoint), reference(str(checkpoint))
    weight = torch.randn(sum(LENGTHS), ours.config.vocab_size, generator=torch.Generator().manual_seed(3))
    got, wanted = packed(ours), torch.cat([own(text[None], use_cache=False).logits[0] for text in sequences()])
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    without = {name for name, _ in ours.named_parameters()} - found.keys()
    assert without and all(".indexer." in name for name in without)  # they choose keys, and no more


def test_a_cache_goes_on_where_it_was_however_a_sequence_is_cut(checkpoint):
    """The attention of each kind of layer, prompts of 1 to 30 tokens and then one at a time."""
    model, generator = load_model(checkpoint).eval(), torch.Generator().manual_seed(0)
    hidden, positions = torch.randn(1, 40, 64, generator=generator), torch.arange(40)[None]
    rotary = {kind: model.model.rotary_emb(hidden, positions, layer_type=kind) for kind in ("main", "compress")}
    tokens = Tokens(hidden, rotary, positions)
    with torch.no_grad():
        for layer in model.model.layers:
            whole = attend(layer.self_attn, tokens)
            for first in (1, 7, 8, 30):
                cache = DynamicCache(config=model.config)
                cuts = [slice(0, first), *(slice(t, t + 1) for t in range(first, 40))]
                parts = [attend(layer.self_attn, tokens.at(slice(None), cut), cache) for cut in cuts]
                assert (torch.cat(parts, dim=1) - whole).abs().max() <= 1e-5 * whole.abs().max()


def test_a_table_of_tokens_is_no_router_to_be_balanced(checkpoint):
    model = load_model(checkpoint).train()
    balance = SequenceBalance(model)
    with balance.watch(LENGTHS) as losses:
        packed(model)
    assert len(list(routers(model))) == 3 and len(losses) == 2


# --- checkpoints ---


def test_checkpoints_have_the_released_names(disturbed):
    """As in DeepSeek's files and in vLLM's loader (vllm/models/deepseek_v4)."""
    _, folder = disturbed
    names = load_file(folder / "model.safetensors").keys()
    assert {"embed.weight", "head.weight", "norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale"} <= names
    inside = {
        name.removeprefix("layers.1.") for name in names if name.startswith("layers.1.") and ".experts." not in name
    }
    attention = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "q_norm", "kv_norm")
    compressor = ("ape", "wkv.weight", "wgate.weight", "norm.weight")
    assert inside == {
        *(f"hc_{place}_{part}" for place in ("attn", "ffn") for part in ("fn", "base", "scale")),
        *(f"{place}_norm.weight" for place in ("attn", "ffn")),
        *(f"attn.{part}.weight" for part in attention),
        *(f"attn.{owner}compressor.{part}" for owner in ("", "indexer.") for part in compressor),
        *(f"ffn.shared_experts.w{part}.weight" for part in (1, 2, 3)),
        "attn.attn_sink", "attn.indexer.wq_b.weight", "attn.indexer.weights_proj.weight", "ffn.gate.weight",
        "ffn.gate.bias",
    }  # fmt: skip
    assert {f"layers.2.ffn.experts.7.w{part}.weight" for part in (1, 2, 3)} <= names
    assert "layers.0.ffn.gate.tid2eid" in names


def test_every_way_of_saving_is_read_by_transformers_as_it_was(disturbed, checkpoint, tmp_path):
    """At once, and a tensor at a time as several ranks do it; what was loaded and saved is the same file again."""
    model, folder = disturbed
    tensors = (piece for stored in stored_weights(model) for piece in hub_pieces(*stored))
    write_sharded(tmp_path, tensors, torch.float32)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for place in (folder, tmp_path):
        loaded = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    save_model(tmp_path / "again", load_model(folder), load_tokenizer(folder))
    one, other = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_chooses_experts_is_not_rounded(disturbed, tmp_path):
    """Neither in a checkpoint nor on the way to a generator: a table beyond 256 experts has no bfloat16."""
    model, folder = disturbed
    save_model(tmp_path, model, load_tokenizer(folder), dtype=torch.bfloat16)
    exact = {name for name in hub_views(model) if is_selection_bias(name) or name.endswith("tid2eid")}
    assert len(exact) == 3
    sent = {
        name: t
        for bucket in pack_weights(hub_views(model).items(), 1 << 20, "bfloat16")
        for name, t in bucket.tensors()
    }
    for stored in (load_file(tmp_path / "model.safetensors"), sent):
        assert all(torch.equal(stored[name], hub_views(model)[name]) for name in exact)
        assert all(tensor.dtype == torch.bfloat16 for name, tensor in stored.items() if name not in exact)


# --- what is refused ---


def test_what_v4_does_not_have_here_is_refused(checkpoint, tmp_path):
    model = load_model(checkpoint)
    with pytest.raises(ValueError, match=r"cannot run in FP8: it limits what its experts multiply"):
        convert(model, Fp8Config(backend="reference"))
    with pytest.raises(ValueError, match="DeepSeek-V4 is not written in FP8 here"):
        save_model(tmp_path, model, load_tokenizer(checkpoint), dtype="fp8")
    with pytest.raises(ValueError, match=r"precision bfloat16 would round what deepseek_v4 keeps in float32"):
        check_rounding(model.config)
    with pytest.raises(ValueError, match=r"needs layout=\.\.\. in the model call"):
        model(torch.tensor([[9, 10]]), use_cache=False)
    config = AutoConfig.for_model("deepseek_v4", **CONFIGS["deepseek_v4"], num_hidden_layers=3)
    config.quantization_config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="DeepSeek-V4 checkpoints in FP8 and FP4 are not read here"):
        load_model(tmp_path)
