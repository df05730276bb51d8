"""`r1 export`: what others load, and a card that says what it is."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from fp8.convert import is_quantised
from fp8.quantize import SCALE_SUFFIX, dequantize_blocks
from models.checkpoint import load_model, load_tokenizer, save_model
from models.export import export_checkpoint
from pipeline.artifact import Manifest
from pipeline.cli import main
from pipeline.model_card import model_card
from tests.architectures import make_architecture


def export(*arguments: object):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_bfloat16_loads_in_transformers_with_every_weight_rounded_once(tiny_checkpoint, tmp_path):
    result = export(tiny_checkpoint, tmp_path / "out")
    assert result.exit_code == 0 and "in bfloat16" in result.output
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "out"))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        kept = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        assert after[name].dtype == kept and torch.equal(after[name], weight.to(kept)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and tokenizer.chat_template == load_tokenizer(tiny_checkpoint).chat_template
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_fp8_has_deepseeks_blocks_and_is_read_back_within_their_error(tiny_checkpoint, tmp_path):
    assert export(tiny_checkpoint, tmp_path / "out", "--format", "fp8").exit_code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint, tmp_path / "out"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    quantised = [name for name in before if is_quantised(name)]
    assert len(quantised) > 20 and {name + SCALE_SUFFIX for name in quantised} == after.keys() - before.keys()
    for name in quantised:
        assert after[name].dtype == torch.float8_e4m3fn
        error = dequantize_blocks(after[name], after[name + SCALE_SUFFIX]) - before[name]
        assert error.abs().max() <= before[name].abs().max() / 16, name  # half a step of E4M3's three bits
    ids = torch.tensor([[5, 9, 17, 33, 4]])
    logits = [load_model(f, attention="sdpa")(input_ids=ids).logits for f in (tiny_checkpoint, tmp_path / "out")]
    assert torch.nn.functional.cosine_similarity(*logits, dim=-1).min() > 0.9


def test_fp8_names_the_layers_that_stay_and_says_what_vllm_refuses(tiny_checkpoint, tmp_path):
    """Qwen's routers are a weight that vLLM takes for FP8, DeepSeek's have a bias beside it and are not."""
    make_architecture(tmp_path / "qwen", "qwen3_moe")
    kept, out = [], tmp_path / "out"
    out.mkdir()
    for folder in (tmp_path / "qwen", tiny_checkpoint):
        result = export(folder, out / folder.name, "--format", "fp8")
        assert result.exit_code == 0, result.output
        assert "vLLM will not load it" in result.output
        assert "no multiple of 128" in result.output
        config = json.loads((out / folder.name / "config.json").read_text())["quantization_config"]
        kept.append(config.get("modules_to_not_convert"))
    assert kept == [["model.layers.1.mlp.gate", "model.layers.2.mlp.gate"], None]


def test_fp8_of_fp8_is_bit_for_bit_and_its_bfloat16_is_multiplied_out(tiny_checkpoint, tmp_path):
    save_model(tmp_path / "a", load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint), dtype="fp8")
    export_checkpoint(tmp_path / "a", tmp_path / "b", "fp8")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name].view(torch.uint8), second[name].view(torch.uint8)) for name in first)
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())
    export_checkpoint(tmp_path / "a", tmp_path / "c", "bfloat16")
    plain = load_file(tmp_path / "c" / "model.safetensors")
    for name in filter(is_quantised, plain):
        assert torch.equal(plain[name], dequantize_blocks(first[name], first[name + SCALE_SUFFIX]).bfloat16()), name
    assert "quantization_config" not in json.loads((tmp_path / "c/config.json").read_text())


def test_large_checkpoints_are_written_in_files_of_bounded_size(tied_checkpoint, tmp_path):
    export_checkpoint(tied_checkpoint, tmp_path / "out", "bfloat16", limit_bytes=30_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    whole = load_model(tied_checkpoint).state_dict()
    for name, weight in load_model(tmp_path / "out").state_dict().items():
        assert torch.equal(weight, whole[name].bfloat16().float()), name


def make_run(folder: Path, checkpoint: Path) -> Path:
    """A run of one stage and its evaluation."""
    distilled = folder / "distill"
    shutil.copytree(checkpoint, distilled)
    common = {"config": {}, "files": {}, "seed": 7, "versions": {"torch": "2.13.0"}, "code_version": {"git": "abc123"}}
    parents = {
        "student": {"path": "../student_base", "content_hash": "s"},
        "dataset": {"path": "/x/set", "content_hash": "d"},
    }
    made = Manifest(
        kind="checkpoint", stage="distill", stage_kind="distill", parents=parents, content_hash="f00d" * 16, **common
    )
    made.write(distilled)
    scores = {"k": 4, "pass@1": {"mean": 0.5, "low": 0.4, "high": 0.6}, "pass@k": {"4": 0.75}, "cons@k": 0.625}
    suite = {"problems": 9, "temperature": 0.6, "top_p": 0.95}
    evaluate = folder / "evaluate"
    evaluate.mkdir()
    results = {"suite": suite, "checkpoints": {"student": {"overall": scores}}}
    (evaluate / "results.json").write_text(json.dumps(results))
    seen = {"checkpoints.student": {"path": "../distill", "content_hash": made.content_hash}}
    scored = Manifest(kind="scores", stage="evaluate", stage_kind="evaluate", parents=seen, content_hash="e", **common)
    scored.write(evaluate)
    return distilled


def test_the_card_tells_lineage_scores_and_versions(llama_checkpoint, tmp_path):
    distilled = make_run(tmp_path / "run", llama_checkpoint)
    assert export(distilled, tmp_path / "student").exit_code == 0
    card = (tmp_path / "student" / "README.md").read_text()
    assert "# student\n" in card and "supervised fine-tuning on a teacher's samples" in card
    assert "| student_base | given, not made here | | |" in card and "student: student_base, dataset: set" in card
    assert "| pass@1 | 50.0 (40.0 to 60.0) |" in card and "| pass@4 | 75.0 |" in card and "| cons@4 | 62.5 |" in card
    assert "Seed 7; code abc123; torch 2.13.0." in card and str(tmp_path) not in card
    (distilled / "manifest.json").unlink()
    assert "how it was made is not recorded" in model_card(distilled, "student", "fp8")
    assert not {"manifest.json", "metrics.jsonl"} & {file.name for file in (tmp_path / "student").iterdir()}


def test_the_card_names_the_published_model_and_the_benchmark(llama_checkpoint, tmp_path):
    distilled = make_run(tmp_path / "run", llama_checkpoint)
    base = tmp_path / "run" / "student_base"
    base.mkdir()
    common = {"files": {}, "parents": {}, "seed": 0, "versions": {}, "code_version": {}, "content_hash": "s"}
    config = {"model": "meta-llama/Llama-3.1-8B", "revision": "main"}
    counts = {"revision": "0e9e39f"}
    Manifest(
        kind="checkpoint", stage="student_base", stage_kind="import", config=config, counts=counts, **common
    ).write(base)
    results = tmp_path / "run" / "evaluate" / "results.json"
    scores = json.loads(results.read_text())
    scores["suite"]["from"] = {"sources": [{"path": "HuggingFaceH4/MATH-500"}]}
    results.write_text(json.dumps(scores))
    card = model_card(distilled, "student", "bfloat16")
    assert "`meta-llama/Llama-3.1-8B` as it is published, revision 0e9e39f" in card
    assert "9 held-out problems of MATH-500, 4 completions each" in card


def test_what_cannot_be_exported_is_one_sentence(tiny_checkpoint, v4_checkpoint, tmp_path):
    (tmp_path / "there").mkdir()
    for arguments, said in (
        ([tiny_checkpoint, tmp_path / "there"], "exists already"),
        ([tiny_checkpoint, tmp_path / "no" / "where"], "does not exist"),
        ([tmp_path / "gone", tmp_path / "out"], "there is no such checkpoint folder"),
        ([tiny_checkpoint, tmp_path / "out", "--format", "gguf"], "convert_hf_to_gguf.py"),
        ([v4_checkpoint, tmp_path / "out", "--format", "fp8"], "DeepSeek-V4 is not written in FP8"),
    ):
        result = export(*arguments)
        assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert not list(tmp_path.glob(".r1-export*")) and not (tmp_path / "out").exists()
