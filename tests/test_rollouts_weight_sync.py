"""Weights on their way: nothing is lost, a bucket is bounded, and what is not whole is never sampled from."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fp8.convert import is_quantised
from fp8.quantize import dequantize_blocks, quantize_blocks
from models.checkpoint import hub_state_dict, load_model
from models.routing import is_selection_bias
from models.weight_names import hub_views
from rollouts.buckets import CorruptWeights, checksum, pack_weights
from rollouts.records import Request, SamplingParams
from rollouts.transformers_generator import TransformersGenerator
from rollouts.weight_files import stored_shapes, stored_tensors, write_buckets
from rollouts.weight_sync import WrongWeights
from tests.toy_senders import Sender

PARAMS = SamplingParams(max_new_tokens=8, seed=1)
REQUESTS = [Request(key="a", prompt_ids=[9, 10, 11])]


@pytest.fixture(scope="module")
def weights(tiny_checkpoint):
    return {name: tensor.clone() for name, tensor in hub_views(load_model(tiny_checkpoint)).items()}


@pytest.fixture
def generator(tiny_checkpoint):
    return TransformersGenerator(str(tiny_checkpoint), device="cpu")


def shapes(weights):
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


tensor_sizes = st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=8)


@given(tensor_sizes, st.integers(1, 2000))
def test_buckets_hold_everything_once_and_are_bounded(sizes, limit):
    tensors = {f"t{i}": torch.randn(size) for i, size in enumerate(sizes)}
    buckets = list(pack_weights(tensors.items(), limit, "float32"))
    arrived = [pair for bucket in buckets for pair in bucket.tensors()]
    assert [name for name, _ in arrived] == list(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in arrived)
    for bucket in buckets:
        assert bucket.data.nbytes <= limit or len(bucket.entries) == 1


def test_names_are_those_of_the_checkpoint(weights, tiny_checkpoint):
    expected = hub_state_dict(load_model(tiny_checkpoint))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    mtp = {name for name in stored_shapes(tiny_checkpoint) if name.startswith("model.layers.3.")}
    assert weights.keys() == stored_shapes(tiny_checkpoint).keys() - mtp


@given(tensor_sizes, st.sampled_from(["float32", "bfloat16", "fp8"]), st.data())
def test_a_changed_byte_is_noticed_wherever_it_is(sizes, wire, data):
    tensors = {f"q_proj{i}.weight": torch.randn(size) for i, size in enumerate([*sizes, [80, 90]])}
    for bucket in pack_weights(tensors.items(), 1 << 20, wire):
        bucket.check()
        entry = data.draw(st.sampled_from(bucket.entries))
        tensor = entry.of(bucket.data)
        byte = entry.start + data.draw(st.integers(0, tensor.nbytes - 1))
        bucket.data[byte] ^= data.draw(st.integers(1, 255))
        with pytest.raises(CorruptWeights, match=f"weight {re.escape(entry.name)} arrived otherwise"):
            list(bucket.tensors())


def test_a_checksum_tells_tensors_apart_by_their_bytes_alone():
    big = torch.randn(300, 70)
    assert checksum(big) == checksum(big.T.contiguous().T) == checksum(torch.cat([big[:1], big])[1:])
    shifted, zeros = torch.roll(big.flatten(), 1).view_as(big), torch.zeros_like(big)
    assert len({checksum(t) for t in (big, shifted, zeros, big.flip(0), big[1:])}) == 5


@pytest.mark.parametrize(("wire", "bytes_per_weight"), [("float32", 4), ("bfloat16", 2), ("fp8", 1)])
def test_formats_on_the_wire(weights, wire, bytes_per_weight):
    arrived = {}
    for bucket in pack_weights(weights.items(), 1 << 14, wire):
        arrived |= dict(bucket.tensors())
    assert arrived.keys() == weights.keys()
    for name, tensor in weights.items():
        got = arrived[name].float()
        exact = wire == "float32" or name.endswith("e_score_correction_bias")
        rounding = 0 if exact else 2**-8 if wire == "bfloat16" else 2**-4
        step = tensor.abs().max() / 448 * 2**-9 if wire == "fp8" else 0
        assert ((got - tensor).abs() <= rounding * tensor.abs() + step).all(), name
    big = "model.layers.1.self_attn.kv_b_proj.weight"
    sent = next(b for b in pack_weights(weights.items(), 1, wire) if big in b.names())
    assert weights[big].numel() * bytes_per_weight <= sent.data.nbytes < weights[big].numel() * bytes_per_weight * 1.1


@pytest.mark.parametrize("rounds", [False, True])
def test_what_is_quantised_on_the_way_is_what_the_trainer_multiplies(weights, tiny_checkpoint, tmp_path, rounds):
    sender = Sender(str(tiny_checkpoint))
    sender.rounds = rounds
    sender.change(0)  # to numbers that bfloat16 does not hold
    sender.write_weights(str(tmp_path), 1 << 20, "fp8")
    sent, other = dict(stored_tensors(tmp_path)), 0
    for name, weight in sender.weights():
        fine, coarse = weight, weight.bfloat16()
        if is_quantised(name):
            fine, coarse = (dequantize_blocks(*quantize_blocks(each)) for each in (fine, coarse))
            other += not torch.equal(fine, coarse)
            assert torch.equal(sent[name].float(), coarse if rounds else fine), name
        elif is_selection_bias(name):
            assert torch.equal(sent[name], fine)
        else:
            assert torch.equal(sent[name], coarse)
    assert other > 5


def test_fp8_leaves_embeddings_head_router_and_norms_alone(weights):
    sent = [[entry.name for entry in b.entries] for b in pack_weights(weights.items(), 1, "fp8")]
    quantised = {name for names in sent for name in names if name + "_scale_inv" in names}
    kinds = {name.split(".")[-2] for name in quantised}
    assert kinds == {
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    assert {name for name in weights if name.split(".")[-2] in kinds and name.endswith("weight")} == quantised


def test_sent_in_buckets_equals_loaded_at_once(generator, tiny_checkpoint, weights):
    other = {name: 1.1 * tensor for name, tensor in weights.items()}
    whole = TransformersGenerator(str(tiny_checkpoint), device="cpu")
    whole.load_weights(other, version=4)
    generator.begin_update(shapes(other))
    for bucket in pack_weights(other.items(), 4096, "float32"):
        generator.update(bucket)
    generator.finish_update(4)
    assert generator.held_checksums() == whole.held_checksums()
    a, b = (g.sample(REQUESTS, PARAMS)[0].completions[0] for g in (generator, whole))
    assert a.token_ids.tolist() == b.token_ids.tolist()
    assert {*a.policy_versions, *b.policy_versions} == {4}


@pytest.mark.parametrize("wire", ["float32", "fp8"])
def test_files_hold_the_same_as_buckets(generator, weights, wire, tmp_path):
    (tmp_path / "stale.safetensors").write_bytes(b"of an earlier version")
    write_buckets(tmp_path, pack_weights(weights.items(), 1 << 15, wire))
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert stored_shapes(tmp_path) == shapes(weights)
    sent = {n: t for b in pack_weights(weights.items(), 1 << 15, wire) for n, t in b.tensors()}
    assert all(torch.equal(tensor, sent[name]) for name, tensor in stored_tensors(tmp_path))
    generator.load_files(str(tmp_path), version=2)
    assert generator.policy_version == 2


def test_half_an_update_is_never_sampled_from(generator, weights):
    generator.begin_update(shapes(weights))
    first = next(iter(pack_weights(weights.items(), 4096, "float32")))
    generator.update(first)
    for attempt in (lambda: generator.sample(REQUESTS, PARAMS), lambda: generator.score([[1, 2]])):
        with pytest.raises(WrongWeights, match="incomplete"):
            attempt()
    with pytest.raises(KeyError, match="was announced and did not come"):
        generator.finish_update(1)
    with pytest.raises(WrongWeights):
        generator.sample(REQUESTS, PARAMS)


@pytest.mark.parametrize(
    "missing",
    [
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.experts.0.up_proj.weight",
        "model.layers.2.mlp.experts.7.down_proj.weight",
    ],
)
def test_an_update_that_lacks_a_tensor_changes_nothing(generator, weights, missing):
    before = generator.held_checksums()
    known = shapes(weights)
    with pytest.raises(KeyError, match=f"weights lack {re.escape(missing)}"):
        generator.begin_update({n: s for n, s in known.items() if n != missing})
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \(3,\)"):
        generator.begin_update(known | {"model.norm.weight": (3,)})
    assert generator.policy_version == 0
    assert generator.held_checksums() == before
    generator.sample(REQUESTS, PARAMS)


def test_a_replica_with_another_version_refuses(generator):
    assert list(generator.stream(REQUESTS, PARAMS, version=0))
    with pytest.raises(WrongWeights, match="holds policy version 0, but 3 was asked for"):
        list(generator.stream(REQUESTS, PARAMS, version=3))


def test_score_is_the_forward_pass(generator, tiny_checkpoint):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32, attn_implementation="eager")
    sequences = [[9, 20, 31, 7], [5, 6]]
    for ids, got in zip(sequences, generator.score(sequences), strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model.eval()(torch.tensor([ids])).logits[0].double(), -1)
        np.testing.assert_allclose(got, expected[range(len(ids) - 1), ids[1:]], atol=2e-5)
