"""README.md of an exported checkpoint: what it is, what it was made from, how it scores, how to load it.

All of it is read off manifests and results; a checkpoint without them gets a card that says so.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from pipeline.artifact import ArtifactError, Manifest, read_manifest

_METHODS = {
    "pretrain": "trained from scratch",
    "sft": "supervised fine-tuning",
    "grpo": "reinforcement learning (GRPO)",
    "distill": "supervised fine-tuning on a teacher's samples",
    "on_policy_distill": "distillation on the student's own samples",
    "reward_model": "a scalar head trained on judgements",
}


def model_card(checkpoint: Path, name: str, precision: str) -> str:
    """Markdown with a YAML head, as model hubs show it. Folders appear by name: paths are of one machine alone."""
    manifest = read_manifest(checkpoint)
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags: [r1-pipeline]", "---", ""]
    lines += [f"# {name}", "", f"Weights in {precision}, written by `r1 export`.", ""]
    if manifest is None:
        return "\n".join([*lines, "The checkpoint had no manifest, so how it was made is not recorded.", ""])
    lines += ["## How it was made", "", "| stage | what it is | made from | content hash |", "|---|---|---|---|"]
    lines += [_lineage_row(stage, held) for stage, held in lineage(checkpoint)]
    lines += ["", *_scores(checkpoint, manifest), *_reproduction(manifest)]
    return "\n".join([*lines, "## Use", "", "```python", *_USE, "```", ""])


_USE = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model, tokenizer = (kind.from_pretrained("FOLDER") for kind in (AutoModelForCausalLM, AutoTokenizer))',
)


def lineage(checkpoint: Path) -> Iterator[tuple[str, Manifest | None]]:
    """(name, manifest) of the checkpoint and all it was made from, nearest first, each once; None: there is none."""
    waiting, seen = [checkpoint.resolve()], set()
    while waiting:
        folder = waiting.pop(0)
        if folder in seen:
            continue
        seen.add(folder)
        try:
            manifest = read_manifest(folder)
        except ArtifactError:
            manifest = None
        yield folder.name, manifest
        for parent in (manifest.parents if manifest else {}).values():
            waiting.append((folder / parent["path"]).resolve())


def _lineage_row(stage: str, manifest: Manifest | None) -> str:
    if manifest is None:
        return f"| {stage} | given, not made here | | |"
    what = _what(manifest)
    parents = ", ".join(f"{role}: {PurePath(parent['path']).name}" for role, parent in manifest.parents.items())
    return f"| {stage} | {what} | {parents} | {manifest.content_hash[:16]} |"


def _what(manifest: Manifest) -> str:
    config = manifest.config
    if manifest.stage_kind == "import":
        model = str(config.get("model", ""))
        named = model if model.count("/") == 1 and not model.startswith((".", "/", "~")) else PurePath(model).name
        commit = manifest.counts.get("revision") or config.get("revision")
        revision = f", revision {commit}" if commit else ""
        return f"`{named}` as it is published{revision}"
    if manifest.stage_kind == "distill" and config.get("kl"):
        return "distillation from a teacher's probabilities"
    return _METHODS.get(manifest.stage_kind, manifest.kind)


def _scores(checkpoint: Path, manifest: Manifest) -> list[str]:
    """From the evaluations of the run that the checkpoint belongs to."""
    for results, found in _evaluations(checkpoint.parent):
        labels = [
            role.rpartition(".")[2]
            for role, parent in found.parents.items()
            if parent.get("content_hash") == manifest.content_hash
        ]
        scored = [results["checkpoints"][label] for label in labels if label in results["checkpoints"]]
        if scored:
            return [*_score_table(scored[0]["overall"], results["suite"]), ""]
    return ["## Scores", "", "Not evaluated in its run.", ""]


def _evaluations(run: Path) -> Iterator[tuple[dict[str, Any], Manifest]]:
    for file in sorted(run.glob("*/results.json")):
        try:
            manifest = read_manifest(file.parent)
            results = json.loads(file.read_text(encoding="utf-8"))
        except (ArtifactError, OSError, ValueError):
            continue
        if manifest is not None and isinstance(results.get("checkpoints"), dict):
            yield results, manifest


def _score_table(overall: Mapping[str, Any], suite: Mapping[str, Any]) -> list[str]:
    sources = ((suite.get("from") or {}).get("sources")) or ()
    named = " of " + ", ".join(PurePath(source["path"]).name for source in sources) if sources else ""
    asked = (
        f"{suite.get('problems')} held-out problems{named}, {overall['k']} completions each, temperature "
        f"{suite.get('temperature')}, top-p {suite.get('top_p')}; in %, with 95 % intervals over problems."
    )
    lines = ["## Scores", "", asked, "", "| quantity | score |", "|---|---|"]
    for quantity in ("pass@1", "language_consistency"):
        if overall.get(quantity):
            mean, low, high = (100 * overall[quantity][key] for key in ("mean", "low", "high"))
            lines.append(f"| {quantity} | {mean:.1f} ({low:.1f} to {high:.1f}) |")
    lines += [f"| pass@{k} | {100 * value:.1f} |" for k, value in (overall.get("pass@k") or {}).items()]
    if overall.get("cons@k") is not None:
        lines.append(f"| cons@{overall['k']} | {100 * overall['cons@k']:.1f} |")
    return lines


def _reproduction(manifest: Manifest) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    code = manifest.code_version.get("git") or manifest.code_version.get("sources") or "unknown"
    return ["## Reproduction", "", f"Seed {manifest.seed}; code {code[:12]}; {versions}.", ""]
