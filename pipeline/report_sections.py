"""The lower half of the report: learning curves, samples, data cards, and where every artifact came from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pipeline.report_charts import learning_curves
from pipeline.report_data import RunFiles, StageFiles
from pipeline.report_html import (
    Html,
    chip,
    details,
    duration,
    fill,
    join,
    missing,
    number,
    row,
    section,
    table,
    text,
    untrusted,
)
from pipeline.report_lineage import Node, lineage_svg

SHOWN_PROBLEMS = 6
_VERDICTS = {"pass": "good", "fail": "bad", "error": "noise"}


def curves(run: RunFiles) -> Html:
    if not any(stage.metrics for stage in run.stages):
        return section("curves", "Learning curves", missing("Training logs (metrics.jsonl)"))
    caption = fill(
        '<p class="muted">{}</p>',
        "Against the step. Faint: every step; bold: mean over the neighbouring tenth of the steps; shaded: where the "
        "recipe expects the bold line, which is then the mean over the steps before. A spike that would flatten the "
        "rest leaves the chart at its edge.",
    )
    return section("curves", "Learning curves", caption, learning_curves(run.stages, run.label))


def samples(run: RunFiles) -> Html:
    """Held-out problems answered by every checkpoint, then training samples of the first and the last step."""
    before_after = [_training_samples(stage, run.label(stage.name)) for stage in run.stages if stage.samples]
    return section(
        "samples",
        "Samples",
        fill("<h3>Held-out problems, by checkpoint</h3>"),
        _evaluated(run) if run.completions else missing("The completions of the evaluation (completions.parquet)"),
        fill("<h3>Training samples, first and last step</h3>"),
        join(before_after) if before_after else missing("Samples of training (samples.jsonl)"),
    )


def _evaluated(run: RunFiles) -> Html:
    order = {name: i for i, name in enumerate(run.checkpoints)}
    shown = []
    for problem_id in chosen_problems(run.completions):
        rows = [r for r in run.completions if r["problem_id"] == problem_id]
        first: dict[str, dict[str, Any]] = {}
        for r in sorted(rows, key=lambda r: (order.get(r["checkpoint"], len(order)), r["checkpoint"], r["sample"])):
            first.setdefault(r["checkpoint"], r)
        problem = rows[0]
        shown.append(
            details(
                f"{problem['domain']}, {problem['language']}: {_short(problem['question'])}",
                fill('<p class="meta">Problem {}. Ground truth: {}</p>', problem_id, problem["ground_truth"]),
                untrusted(problem["question"]),
                fill('<div class="cards">{}</div>', join(_completion(r["checkpoint"], r) for r in first.values())),
                opened=not shown,
            )
        )
    note = (
        "The first problem by id of each domain and language, domains in turn, and sample 0 of every checkpoint: "
        "chosen before looking at the answers."
    )
    return join([fill('<p class="muted">{}</p>', note), *shown])


def chosen_problems(completions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids to show: the first of each (domain, language), every domain once before any twice, languages in turn."""
    first: dict[str, dict[str, str]] = {}  # domain -> language -> id
    for r in completions:
        languages = first.setdefault(r["domain"], {})
        languages[r["language"]] = min(languages.get(r["language"], r["problem_id"]), r["problem_id"])
    chosen = []
    for turn in range(max(map(len, first.values()), default=0)):
        for i, domain in enumerate(sorted(first)):
            languages = sorted(first[domain])
            if turn < len(languages):
                chosen.append(first[domain][languages[(turn + i) % len(languages)]])
    return chosen[:SHOWN_PROBLEMS]


def _training_samples(stage: StageFiles, title: str) -> Html:
    first_step = min(s.get("step", 0) for s in stage.samples)
    last_step = max(s.get("step", 0) for s in stage.samples)
    early = [s for s in stage.samples if s.get("step", 0) == first_step]
    late = [s for s in stage.samples if s.get("step", 0) == last_step]
    common = [s["problem_id"] for s in early if s.get("problem_id") in {t.get("problem_id") for t in late}]
    pair = [next((s for s in rows if not common or s["problem_id"] == common[0]), rows[0]) for rows in (early, late)]
    cards = [_completion(f"step {s.get('step', 0)}", s, question=True) for s in pair[: 1 + (first_step != last_step)]]
    return details(title, fill('<div class="cards">{}</div>', join(cards)))


def _completion(title: str, record: Mapping[str, Any], question: bool = False) -> Html:
    verdict = str(record.get("verdict", ""))
    facts = []
    if record.get("reward") is not None:
        facts.append(f"reward {number(record['reward'])}")
    parts = record.get("parts") or {}
    facts += [f"{name} {number(value)}" for name, value in parts.items()]
    if record.get("format") is not None:
        facts.append("right format" if record["format"] else "wrong format")
    if record.get("language_consistency") is not None:
        facts.append(f"language {number(record['language_consistency'])}")
    if record.get("length") is not None:
        facts.append(f"{number(record['length'])} tokens")
    asked = fill('<p class="meta">{}</p>', _short(str(record.get("question", "")), 300)) if question else ""
    return fill(
        '<div class="sample"><p class="meta"><b>{}</b> {} {}</p>{}{}</div>',
        title,
        chip(verdict, _VERDICTS.get(verdict, "none")),
        ", ".join(facts),
        asked,
        untrusted(str(record.get("completion", ""))),
    )


def _short(content: str, limit: int = 90) -> str:
    line = " ".join(content.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def data_cards(run: RunFiles) -> Html:
    cards = [
        fill('<h3>{}</h3><div class="tables">{}</div>', stage.name, join(_card(stage.data_card)))
        for stage in run.stages
        if stage.data_card
    ]
    return section("data", "Data", join(cards) if cards else missing("Data cards (data_card.json)"))


def _card(card: Mapping[str, Any], prefix: str = "") -> list[Html]:
    """Scalars of a (nested) card in one table, every mapping of numbers in its own, with bars."""
    scalars = {name: value for name, value in card.items() if not isinstance(value, Mapping)}
    shown = []
    if scalars:
        rows = [row(_words(k), [str(v) if k.endswith("seed") else _cell(v)]) for k, v in scalars.items()]
        shown.append(table([prefix or "In all", ""], rows, css="card"))
    for name, value in card.items():
        if not isinstance(value, Mapping) or not value:
            continue
        title = f"{prefix}: {_words(name)}" if prefix else _words(name)
        if _is_distribution(value):
            greatest = max(abs(v) for v in value.values()) or 1
            rows = [_bar_row(key, v, abs(v) / greatest) for key, v in value.items()]
            shown.append(table([title, "", ""], rows, css="card"))
        else:
            shown += _card(value, title)
    return shown


def _is_distribution(card: Mapping[str, Any]) -> bool:
    """Numbers that can be compared with each other; a total beside its mean cannot."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in card.values())
    return numbers and "mean" not in card


def _bar_row(name: str, value: float, share: float) -> Html:
    bar = fill('<span class="bar" style="width:{}%"></span>', f"{100 * share:.1f}")
    return fill('<tr><th scope="row">{}</th><td>{}</td><td class="bars">{}</td></tr>', _words(name), number(value), bar)


def _cell(value: Any) -> Html:
    if isinstance(value, list):
        simple = all(not isinstance(item, list | dict) for item in value)
        return text(", ".join(map(str, value)) if simple else json.dumps(value, ensure_ascii=False))
    return text("–" if value is None else number(value))


def _words(name: str) -> str:
    return name.replace("_", " ")


def lineage(run: RunFiles) -> Html:
    """The graph of artifacts, then the record of every stage."""
    if not run.stages:
        return section("lineage", "Lineage", missing("The first stage"))
    parents = {stage.name: parent_stages(stage, run.stages) for stage in run.stages}
    scored = {stage.name for stage in run.stages if (stage.manifest or {}).get("kind") == "scores"}
    evaluated = {parent for name in scored for parent in parents[name]}
    nodes = [
        Node(
            name=s.name,
            title=run.label(s.name),
            caption=_node_caption(s),
            made=s.manifest is not None,
            mark=s.name in evaluated,
        )
        for s in run.stages
        if s.name not in scored
    ]
    graph = fill(
        '<figure><div class="scroll">{}</div><figcaption>{}</figcaption></figure>',
        lineage_svg(nodes, parents),
        "What was made from what. Second line: kind and the start of the content hash. Dot: scored by the evaluation. "
        "Dashed: not finished.",
    )
    return section("lineage", "Lineage", graph, join(_stage_record(stage, parents[stage.name]) for stage in run.stages))


def parent_stages(stage: StageFiles, stages: Sequence[StageFiles]) -> list[str]:
    """Names of the stages a stage was made from: by content hash and folder name, else by either alone.

    Both are needed: two stages that leave the same bytes have the same hash.
    """
    found = []
    for parent in stage.parents.values():
        digest, folder = parent.get("content_hash"), PurePath(str(parent.get("path", ""))).name
        by_name = [s.name for s in stages if s.name == folder]
        by_hash = [s.name for s in stages if digest and (s.manifest or {}).get("content_hash") == digest]
        matches = [name for name in by_name if name in by_hash] or by_name or by_hash
        found += matches[:1]
    return list(dict.fromkeys(found))


def _node_caption(stage: StageFiles) -> str:
    if stage.manifest is None:
        return "not made yet"
    return f"{stage.manifest.get('kind', 'artifact')} {str(stage.manifest.get('content_hash', ''))[:8]}"


def _stage_record(stage: StageFiles, parents: Sequence[str]) -> Html:
    manifest = stage.manifest
    if manifest is None:
        return fill('<details><summary>{}: <span class="missing">not made yet</span></summary></details>', stage.name)
    facts = {
        "kind": f"{manifest.get('kind', '–')} by {manifest.get('stage_kind', '–')}",
        "content hash": manifest.get("content_hash", "–"),
        "made from": ", ".join(parents) or "nothing",
        "seed": manifest.get("seed", "–"),
        "wall time": duration(manifest.get("wall_time_s")),
        "device": manifest.get("device") or "–",
        "created": manifest.get("created") or "–",
    } | {_words(k): _cell(v) for k, v in (manifest.get("counts") or {}).items() if not isinstance(v, Mapping)}
    rows = [fill('<tr><th scope="row">{}</th><td class="words">{}</td></tr>', k, v) for k, v in facts.items()]
    config = json.dumps(manifest.get("config") or {}, indent=2, ensure_ascii=False)
    return details(
        f"{stage.name}: {manifest.get('kind', 'artifact')}, {duration(manifest.get('wall_time_s'))}",
        table(["", ""], rows, css="card"),
        untrusted(config, limit=20_000),
    )
