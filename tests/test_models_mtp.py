"""The MTP layer: its place in the released checkpoints, and its loss in packed rows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.attention import PackedLayout
from models.checkpoint import load_model, load_mtp_module, load_tokenizer, save_model
from models.mtp import MTPModule
from sft.batch import Example, pack_examples
from tests.architectures import make_architecture
from training.config import OptimizerConfig
from training.trainer import Trainer

LENGTHS = [7, 1, 12, 3, 2]


def stored(checkpoint):
    prefix = "model.layers.3."
    tensors = load_file(checkpoint / "model.safetensors")
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def test_names_are_those_of_the_released_checkpoints(tiny_checkpoint):
    names = set(stored(tiny_checkpoint))
    expected = {"enorm.weight", "hnorm.weight", "eh_proj.weight", "embed_tokens.weight"}
    expected |= {"shared_head.norm.weight", "shared_head.head.weight"}
    expected |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    expected |= {"mlp.gate.weight", "mlp.gate.e_score_correction_bias", "mlp.shared_experts.up_proj.weight"}
    expected |= {f"mlp.experts.{e}.{part}_proj.weight" for e in range(8) for part in ("gate", "up", "down")}
    expected |= {"self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight", "self_attn.o_proj.weight"}
    assert expected <= names
    assert not any("block" in name or "gate_up" in name for name in names)


def test_shared_weights_are_stored_again(tiny_checkpoint):
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    own = stored(tiny_checkpoint)
    assert torch.equal(own["embed_tokens.weight"], tensors["model.embed_tokens.weight"])
    assert torch.equal(own["shared_head.head.weight"], tensors["lm_head.weight"])


def test_roundtrip_through_disk(tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint)
    mtp = load_mtp_module(tiny_checkpoint, model.config)
    assert mtp is not None
    save_model(tmp_path, model, load_tokenizer(tiny_checkpoint), mtp)
    again = load_mtp_module(tmp_path, model.config)
    assert again is not None
    for name, tensor in mtp.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_missing_tensor_is_an_error(tiny_checkpoint, tmp_path):
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    del tensors["model.layers.3.mlp.experts.5.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"experts\.5\.up_proj"):
        load_mtp_module(tmp_path, load_model(tiny_checkpoint).config)


def test_without_weights_it_takes_no_memory(tiny_checkpoint):
    mtp = load_mtp_module(tiny_checkpoint, load_model(tiny_checkpoint).config, on_meta=True)
    assert mtp is not None and all(p.is_meta for p in mtp.parameters())


def test_a_checkpoint_without_mtp_has_none(tiny_checkpoint, llama_checkpoint, tmp_path, caplog):
    llama = load_model(llama_checkpoint)
    assert load_mtp_module(llama_checkpoint, llama.config) is None
    model = load_model(tiny_checkpoint)
    save_model(tmp_path, model, load_tokenizer(tiny_checkpoint))
    assert load_mtp_module(tmp_path, model.config) is None
    assert "says that there is an MTP layer, and its files have none" in caplog.text


def reference_mtp_loss(trainer, sequences, masks) -> float:
    """Each sequence alone: from its hidden state i and the embedding of token i + 1, the logprob of token i + 2."""
    model, mtp, total = trainer.model, trainer.mtp, 0.0
    for ids, mask in zip(sequences, masks, strict=True):
        if len(ids) < 3:
            continue
        packing = PackedLayout.from_lengths([len(ids)])
        positions = torch.arange(len(ids))[None]
        hidden = model.model(
            input_ids=ids[None], position_ids=positions, use_cache=False, layout=packing
        ).last_hidden_state
        n = len(ids) - 1  # the last position has no next token to look at
        mixed = torch.cat([mtp.enorm(model.model.embed_tokens(ids[1:])), mtp.hnorm(hidden[0, :n])], dim=-1)
        rotary = model.model.rotary_emb(hidden[:, :n], positions[:, :n])
        out = mtp.block(mtp.eh_proj(mixed)[None], position_embeddings=rotary, layout=PackedLayout.from_lengths([n]))
        logprobs = torch.log_softmax(model.lm_head(mtp.norm(out))[0].double(), dim=-1)
        for i in range(len(ids) - 2):
            if mask[i + 2]:
                total -= float(logprobs[i, ids[i + 2]].detach())
    return total


@pytest.mark.parametrize("masked", [False, True])
def test_packed_loss_equals_one_sequence_at_a_time(tiny_checkpoint, masked):
    trainer = Trainer(str(tiny_checkpoint), OptimizerConfig(), mtp=True, device="cpu")
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(8, 300, (n,), generator=generator) for n in LENGTHS]
    masks = [torch.arange(n) >= (n // 2 if masked else 0) for n in LENGTHS]
    examples = [Example(token_ids=s.numpy(), loss_mask=m.numpy()) for s, m in zip(sequences, masks, strict=True)]
    (row,) = pack_examples(examples, capacity=64)
    nll, mtp_nll = trainer.next_token_losses(row)
    assert mtp_nll is not None
    assert float(mtp_nll.detach()) == pytest.approx(reference_mtp_loss(trainer, sequences, masks), rel=1e-5)
    (nll + mtp_nll).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in trainer.mtp.named_parameters() if "eh_" in n)


def test_without_mtp_training_its_weights_stay_and_are_saved(tiny_checkpoint, tmp_path):
    trainer = Trainer(str(tiny_checkpoint), OptimizerConfig(lr=1e-2), mtp=False, device="cpu")
    (row,) = pack_examples(
        [Example(token_ids=torch.arange(10, 30).numpy(), loss_mask=torch.ones(20).bool().numpy())], 64
    )
    nll, mtp_nll = trainer.next_token_losses(row)
    assert mtp_nll is None
    nll.backward()
    trainer.optimizer.step(1e-2)
    trainer.save_checkpoint(str(tmp_path))
    before, after = stored(tiny_checkpoint), stored(tmp_path)
    assert torch.equal(after["eh_proj.weight"], before["eh_proj.weight"])
    moved = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    assert torch.equal(after["shared_head.head.weight"], moved)
    assert not torch.equal(moved, before["shared_head.head.weight"])


@pytest.fixture(scope="module")
def v32_checkpoint(tmp_path_factory):
    """DeepSeek-V3.2 with an MTP layer in the released layout, its indexer included."""
    plain = make_architecture(tmp_path_factory.mktemp("v32") / "plain", "deepseek_v32")
    model = load_model(plain)
    mtp = MTPModule(model.config)
    mtp.init_weights(0.1, torch.Generator().manual_seed(0))
    folder = plain.parent / "with_mtp"
    model.config.num_nextn_predict_layers = 1
    save_model(folder, model, load_tokenizer(plain), mtp)
    return folder


def described(folder) -> int:
    return json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"]


def test_v32_is_loaded_trained_and_saved(v32_checkpoint, tmp_path):
    assert described(v32_checkpoint) == 1
    before = stored(v32_checkpoint)
    assert {"self_attn.indexer.wk.weight", "mlp.experts.7.up_proj.weight", "eh_proj.weight"} < before.keys()
    trainer = Trainer(str(v32_checkpoint), OptimizerConfig(lr=1e-2), mtp=True, device="cpu")
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(8, 300, (n,), generator=generator) for n in LENGTHS]
    masks = [torch.ones(n, dtype=torch.bool) for n in LENGTHS]
    examples = [Example(token_ids=s.numpy(), loss_mask=m.numpy()) for s, m in zip(sequences, masks, strict=True)]
    (row,) = pack_examples(examples, capacity=64)
    nll, mtp_nll = trainer.next_token_losses(row)
    (nll + mtp_nll).backward()
    trainer.optimizer.step(1e-2)
    trainer.save_checkpoint(str(tmp_path))
    after = stored(tmp_path)
    assert after.keys() == before.keys() and described(tmp_path) == 1
    assert not torch.equal(after["eh_proj.weight"], before["eh_proj.weight"])
    assert torch.equal(after["self_attn.indexer.wk.weight"], before["self_attn.indexer.wk.weight"])


@pytest.mark.parametrize("name", ["tiny_checkpoint", "v32_checkpoint"])
def test_an_unwanted_layer_is_dropped_and_the_config_says_so(name, request, tmp_path):
    checkpoint = request.getfixturevalue(name)
    trainer = Trainer(str(checkpoint), OptimizerConfig(), mtp=True, drop_mtp=True, device="cpu")
    assert trainer.mtp is None and not trainer.train_mtp
    trainer.save_checkpoint(str(tmp_path))
    assert described(tmp_path) == 0
    assert stored(tmp_path) == {}
    assert load_mtp_module(tmp_path, trainer.model.config) is None


def test_layers_that_cannot_be_computed_are_refused(tiny_checkpoint):
    config = load_model(tiny_checkpoint).config
    config.num_mtp_layers = 2
    with pytest.raises(ValueError, match="has 2 MTP layers and r1 trains one"):
        load_mtp_module(tiny_checkpoint, config)
    config.num_mtp_layers, config.model_type = 1, "deepseek_v4"
    with pytest.raises(ValueError, match="this deepseek_v4 checkpoint has MTP layers"):
        load_mtp_module(tiny_checkpoint, config)


def test_alone_it_learns_without_the_model(tiny_checkpoint):
    trainer = Trainer(str(tiny_checkpoint), OptimizerConfig(), mtp=True, device="cpu")
    ids = torch.arange(10, 40).numpy()
    (row,) = pack_examples([Example(token_ids=ids, loss_mask=torch.ones(30).bool().numpy())], 64)
    joint, alone = (trainer.predict(row, 1.0, mtp=mode).mtp_nll for mode in ("joint", "alone"))
    assert torch.equal(joint, alone)
    alone.backward()
    assert trainer.mtp.eh_proj.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in trainer.model.parameters())
