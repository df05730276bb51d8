"""The upper half of the report: headline, the stage table of the paper for this run, and its findings checked."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mode
from typing import Any

from pipeline.findings import MIN_PROBLEMS, CheckedClaim, CheckedFinding, CheckedTarget, Outcome, check_findings
from pipeline.report_charts import scores_chart
from pipeline.report_data import CHECKPOINT_ORDER, RunFiles
from pipeline.report_html import Html, chip, duration, fill, join, missing, number, percent, points, row, section, table

Row = Mapping[str, Any]
_CHIPS = {Outcome.HOLDS: "good", Outcome.FAILS: "bad", Outcome.NOISE: "noise", Outcome.UNMEASURED: "none"}
_QUANTITIES = {"pass@1": "pass@1", "language_consistency": "language consistency", "utility": "utility"}


def headline(run: RunFiles) -> Html:
    manifests = [stage.manifest for stage in run.stages if stage.manifest]
    versions: dict[str, str] = {}
    for manifest in manifests:
        versions |= manifest.get("versions") or {}
    created = sorted(str(m["created"])[:16].replace("T", " ") for m in manifests if m.get("created"))
    wall = [m["wall_time_s"] for m in manifests if isinstance(m.get("wall_time_s"), int | float)]
    code = dict.fromkeys(_code(m.get("code_version")) for m in manifests if m.get("code_version"))
    seeds = dict.fromkeys(f"{s.name} {s.manifest['seed']}" for s in run.stages if s.manifest and "seed" in s.manifest)
    facts = {
        "Finished stages": f"{len(manifests)} of {len(run.stages)}",
        "Made": _span(created[0], created[-1]) if created else "–",
        "Wall time, all stages": duration(sum(wall)) if wall else "–",
        "Machine": ", ".join(dict.fromkeys(str(m["device"]) for m in manifests if m.get("device"))) or "–",
        "Code": ", ".join(code) or "–",
        "Seeds": f"one per stage, below ({next(iter(seeds))}, …)" if seeds else "–",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or "–",
    }
    return fill(
        '<header><h1>{}</h1><p class="lead">{}</p><dl class="facts">{}</dl></header>',
        run.name,
        achievement(run),
        join(
            fill('<div class="{}"><dt>{}</dt><dd>{}</dd></div>', "wide" if len(value) > 40 else "", name, value)
            for name, value in facts.items()
        ),
    )


def _span(first: str, last: str) -> str:
    """Two UTC times to the minute, the date once when it is the same."""
    if first == last:
        return f"{first} UTC"
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def _code(version: Any) -> str:
    if not isinstance(version, Mapping):
        return str(version)
    if version.get("git"):
        return f"git {str(version['git'])[:10]}" + (" with changes" if version.get("dirty") else "")
    return f"sources {str(version.get('sources', ''))[:10]}"


def achievement(run: RunFiles) -> str:
    """What the chain achieved, in one sentence of numbers."""
    rows = {name: entry["overall"] for name, entry in (run.results or {}).get("checkpoints", {}).items()}
    score = {name: percent(r["pass@1"]["mean"]) for name, r in rows.items() if r.get("pass@1")}
    parts = []
    if {"base", "zero"} <= score.keys():
        parts.append(f"RL alone took the base model from {score['base']} to {score['zero']} % pass@1")
    if "r1" in score:
        ends = rows["r1"]["pass@1"]
        interval = f"95 % interval {percent(ends['low'])} to {percent(ends['high'])}"
        cold = f", after {score['dev1']} at the cold start" if "dev1" in score else ""
        parts.append(f"the whole chain ended at {score['r1']} % ({interval}){cold}")
    if {"student", "student_rl"} <= score.keys():
        parts.append(
            f"the distilled student reached {score['student']} %, the same student with RL {score['student_rl']} %"
        )
    if not parts:
        return "Nothing has been evaluated yet."
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def scores(run: RunFiles) -> Html:
    names = run.checkpoints
    if not run.results or not names:
        return section("scores", "Scores by stage", missing("The evaluation (results.json)"))
    checkpoints = run.results["checkpoints"]
    overall = [checkpoints[name]["overall"] for name in names]
    absent = [name for name in CHECKPOINT_ORDER if name not in names]
    problems = sorted({r["n_problems"] for r in overall})
    counts = {name: checkpoints[name]["overall"]["k"] for name in names}
    k = mode(counts.values())
    others = "".join(f", {name} {count}" for name, count in counts.items() if count != k)
    general = {c["by_domain"]["general"]["k"] for c in checkpoints.values() if "general" in c.get("by_domain", {})}
    if general - {k}:
        others += f"; general prompts {', '.join(map(str, sorted(general)))}"
    caption = (
        f"{'–'.join(map(str, problems))} held-out problems, {k} completions each{others}. pass@1 is mean correctness "
        "over completions; cons@k that of the majority answer of all completions of a problem (ties by expectation, "
        "unparsed answers do not vote); pass@k "
        "the unbiased estimate of Chen et al. (2021). Small figures: 95 % bootstrap intervals that resample problems. "
        "Bold: best of the row, clear of its neighbours or not. Unscorable completions are left out and counted."
        + (f" Not made yet: {', '.join(absent)}." if absent else "")
    )
    if made_by := ", ".join(f"{c} by {s}" for s, c in run.checkpoint_of.items() if c != s):
        caption += f" Checkpoints and stages: {made_by}."
    rows = [*_score_rows(checkpoints, names, "k" if others else str(k)), *_learnt_rows(run, names)]
    body = join(rows, "")
    chart = fill(
        "<figure>{}<figcaption>{}</figcaption></figure>",
        scores_chart(checkpoints, names),
        "Overall pass@1 with its 95 % interval, and cons@k, in %.",
    )
    return section("scores", "Scores by stage", table(["", *names], [body], caption, css="scores"), chart)


def _score_rows(checkpoints: Mapping[str, Any], names: Sequence[str], k: str) -> list[Html]:
    overall = [checkpoints[name]["overall"] for name in names]
    width = len(names)
    rows = [
        _group("All problems, %", width),
        _interval_row("pass@1", [r.get("pass@1") for r in overall]),
        _share_row(f"cons@{k}", [r.get("cons@k") for r in overall]),
    ]
    for n in sorted({n for r in overall for n in r.get("pass@k") or {}}, key=int):
        rows.append(_share_row(f"pass@{n}", [(r.get("pass@k") or {}).get(n) for r in overall]))
    for title, key in (("pass@1 by domain, %", "by_domain"), ("pass@1 by language, %", "by_language")):
        parts = dict.fromkeys(part for name in names for part in checkpoints[name].get(key) or {})
        if parts:
            rows.append(_group(title, width))
        for part in parts:
            cells = [((checkpoints[name].get(key) or {}).get(part) or {}).get("pass@1") for name in names]
            rows.append(_interval_row(part, cells))
    rows += [
        _group("Behaviour", width),
        _interval_row("language consistency, %", [r.get("language_consistency") for r in overall]),
        _share_row("right format, %", [r.get("format_rate") for r in overall]),
        *_utility_rows(checkpoints, names),
        _plain_row("mean length, tokens", overall, "length_mean", lambda v: f"{v:,.0f}"),
        _plain_row("truncated", overall, "truncated", number),
        _plain_row("unscorable", overall, "unscorable", number),
    ]
    return rows


def _utility_rows(checkpoints: Mapping[str, Any], names: Sequence[str]) -> list[Html]:
    """What answers to general instructions are worth; no row where the suite has none."""
    general = [(checkpoints[name].get("by_domain") or {}).get("general") or {} for name in names]
    values = [row.get("utility") for row in general]
    return [_interval_row("true utility of general answers, %", values)] if any(values) else []


def _learnt_rows(run: RunFiles, names: Sequence[str]) -> list[Html]:
    """What each checkpoint's own stage cost: methods are compared at equal numbers of tokens."""
    stats = {stage.name: (stage.manifest or {}).get("counts") or {} for stage in run.stages}
    stage_of = {checkpoint: stage for stage, checkpoint in run.checkpoint_of.items()}
    learnt = [stats.get(stage_of.get(name, name), {}).get("tokens_trained") for name in names]
    cells = ["–" if tokens is None else f"{tokens:,}" for tokens in learnt]
    return [_group("Training of this stage alone", len(names)), row("tokens learnt from", cells)] if any(learnt) else []


def _group(title: str, width: int) -> Html:
    return fill('<tr class="group"><th scope="rowgroup">{}</th><td colspan="{}"></td></tr>', title, width)


def _interval_row(title: str, values: Sequence[Mapping[str, float] | None]) -> Html:
    best = _best([None if v is None else v["mean"] for v in values])
    cells = []
    for i, v in enumerate(values):
        if v is None:
            cells.append("–")
            continue
        mean = _bold(percent(v["mean"]), i in best)
        cells.append(fill("{}<small>{}–{}</small>", mean, percent(v["low"]), percent(v["high"])))
    return row(title, cells)


def _share_row(title: str, values: Sequence[float | None]) -> Html:
    best = _best(values)
    return row(title, [_bold(percent(v), i in best) for i, v in enumerate(values)])


def _plain_row(title: str, rows: Sequence[Row], key: str, show: Callable[[Any], str]) -> Html:
    return row(title, ["–" if r.get(key) is None else show(r[key]) for r in rows])


def _bold(shown: str, best: bool) -> Html:
    return fill("<b>{}</b>" if best else "{}", shown)


def _best(values: Sequence[float | None]) -> set[int]:
    """Positions of the greatest value, none when all are equal: then nothing is best."""
    known = [v for v in values if v is not None]
    if len(known) < 2 or max(known) == min(known):
        return set()
    return {i for i, v in enumerate(values) if v == max(known)}


def findings(run: RunFiles) -> Html:
    """The checklist of the paper's findings."""
    checked = check_findings(run.completions)
    ends = [abs(e) for f in checked for c in f.claims if c.difference for e in (c.difference.low, c.difference.high)]
    intro = fill(
        "<p>{}</p>",
        "Each finding is a claim about the sign of a difference between two checkpoints on the same held-out "
        "problems, in percentage points with a 95 % interval (paired bootstrap over problems). It holds when the whole "
        "interval is on the claimed side of zero, does not hold when it is on the other side, and is within noise when "
        "the interval contains zero. That something does not fall is judged against a line one point below zero "
        f"instead. With fewer than {MIN_PROBLEMS} common problems a claim is not measured. Targets are "
        "separate: met or missed by the mean. Intervals cover other problems of the same kind, not a second training "
        "run, and are not corrected for several comparisons.",
    )
    note = "" if run.completions else missing("The completions of the evaluation (completions.parquet)")
    items = join(_finding(finding, max(ends, default=1.0)) for finding in checked)
    return section(
        "findings", "The paper’s findings on this run", intro, Html(note), fill('<ol class="findings">{}</ol>', items)
    )


def _finding(checked: CheckedFinding, scale: float) -> Html:
    lines = [_claim(claim, scale) for claim in checked.claims if claim.difference]
    if checked.target:
        lines.append(_target(checked.target))
    if checked.reason:
        lines.append(fill('<p class="claim muted">{}</p>', checked.reason))
    return fill(
        '<li><div>{}</div><div><h3>{}</h3>{}<p class="paper">Paper: {}</p></div></li>',
        chip(checked.outcome, _CHIPS[checked.outcome]),
        checked.finding.title,
        join(lines),
        checked.finding.paper,
    )


def _claim(checked: CheckedClaim, scale: float) -> Html:
    claim, difference = checked.claim, checked.difference
    assert difference is not None
    numbers = fill(
        "<span>{}: {} {} %, {} {} %; difference <b>{}</b> points [{}, {}]{}, {} problems</span>",
        _QUANTITIES[claim.quantity],
        claim.higher,
        percent(checked.higher),
        claim.lower,
        percent(checked.lower),
        points(difference.mean),
        points(difference.low),
        points(difference.high),
        f", against {points(-claim.margin)}" if claim.margin else "",
        difference.n_problems,
    )
    return fill('<p class="claim">{}{}</p>', numbers, _strip(difference.low, difference.mean, difference.high, scale))


def _target(checked: CheckedTarget) -> Html:
    target, met = checked.target, "met" if checked.met else "missed"
    if target.level_of is None:
        what = f"Target: at least {points(target.at_least)} points: {met} ({points(checked.value.mean)})."
    else:
        value = checked.value
        what = (
            f"Target: {_QUANTITIES[target.quantity]} of {target.level_of} at least {percent(target.at_least)} %: {met} "
            f"({percent(value.mean)} [{percent(value.low)}, {percent(value.high)}])."
        )
    return fill('<p class="claim muted">{}</p>', what)


def _strip(low: float, mean: float, high: float, scale: float) -> Html:
    """The interval as a line around zero, on the scale all findings share."""

    def x(value: float) -> str:
        return f"{80 + 74 * value / max(scale, 1e-9):.1f}"

    return fill(
        '<svg viewBox="0 0 160 12" width="160" height="12" aria-hidden="true"><path d="M6 6H154" stroke="#d9d6cf"/>'
        '<path d="M80 0V12" stroke="#6b6b6b"/><path d="M{} 6H{}" stroke="#1f4e79" stroke-width="2"/>'
        '<circle cx="{}" cy="6" r="3.5" fill="#1f4e79"/></svg>',
        x(low),
        x(high),
        x(mean),
    )
