"""Whole stages that train adapters, with their real processes: what later stages, transformers and generators find."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft.train import run as run_sft
from tests.test_rl_train import CONFIG, context_for
from tests.test_sft_train import ROWS, Cut, save_rows, sft_config
from training.config import LoRAConfig
from training.run_log import read_log
from training.stage import StageContext

pytestmark = pytest.mark.slow
RESULT = ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.jsonl")


def adapted(config):
    trainer = config.trainer.model_copy(update={"lora": LoRAConfig(rank=4)})
    changed = config.optimizer.model_copy(update={"lr": 1e-2})
    return config.model_copy(update={"trainer": trainer, "optimizer": changed})


def test_sft_that_was_cut_off_leaves_the_same_merged_checkpoint(ray_session, llama_checkpoint, tmp_path):
    from peft import PeftModel

    inputs = {"policy": llama_checkpoint, "dataset": save_rows(tmp_path / "data", ROWS)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def kill_after_step_5(event):
        if event["step"] == 5:
            raise Cut

    run_sft(adapted(sft_config()), StageContext(name="sft", inputs=inputs, output=whole, seed=5))
    with pytest.raises(Cut):
        context = StageContext(name="sft", inputs=inputs, output=cut, seed=5, report=kill_after_step_5)
        run_sft(adapted(sft_config()), context)
    run_sft(adapted(sft_config()), StageContext(name="sft", inputs=inputs, output=cut, seed=5))
    for name in RESULT:
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    losses = [row["loss/nll"] for row in read_log(whole / "metrics.jsonl")]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])

    merged = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(llama_checkpoint, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base, whole / "adapter").eval()
    ids = torch.tensor([[9, 40, 300, 12, 77]])
    with torch.no_grad():
        torch.testing.assert_close(with_adapter(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_grpo_samples_the_adapted_policy_and_refreshes_its_reference(ray_session, tiny_checkpoint, tmp_path):
    from rl.train import run

    run(adapted(CONFIG).model_copy(update={"steps": 8, "reference_every": 4}), context_for(tiny_checkpoint, tmp_path))
    rows = read_log(tmp_path / "metrics.jsonl")
    assert all(row["mismatch/abs_mean"] < 1e-4 for row in rows)
    probes = [row["sync/probe_abs_mean"] for row in rows if "sync/probe_abs_mean" in row]
    assert probes and max(probes) < 1e-4
    base, trained = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path))
    assert {n for n in base if not torch.equal(base[n], trained[n])} == {
        n for n in base if n.startswith(("model.layers.0.", "model.layers.1.", "model.layers.2."))
        and "self_attn" in n and "norm" not in n
    }  # fmt: skip
