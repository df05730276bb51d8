"""The report of a made-up run: complete, self-contained, safe to open, and honest about what is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import plotly.offline
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import render, write_report
from pipeline.report_charts import moving_average, without_spikes
from pipeline.report_data import is_current, read_run
from pipeline.report_html import fill, text
from pipeline.report_lineage import Node, lineage_svg
from pipeline.report_sections import chosen_problems, parent_stages
from tests.report_fixture import CHECKPOINTS, make_run, results
from viewing.bands import Band
from viewing.reference_curves import Reference

ATTACK = '</script></pre><script>alert(1)</script><img src="https://evil.example/x" onerror=alert(2)>\x00\u202e{0}&amp;'


class _Page(HTMLParser):
    """Tags with their attributes, the visible text, and scripts and styles as they would run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.visible, self.scripts = "", []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.visible += data


def _read(folder: Path) -> tuple[str, _Page]:
    page = write_report(folder).read_text(encoding="utf-8")
    return page, _Page(page)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", problems=30, steps=30)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", problems=12, steps=6, attack=ATTACK)


def _assert_loads_nothing(page: _Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "link", "base", "form", "img"}, tag
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "srcset", "action", "data", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)


def test_page_is_one_self_contained_file(finished):
    before = {path for path in finished.rglob("*") if path.name != "report.html"}
    page, parsed = _read(finished)
    _assert_loads_nothing(parsed)
    assert page.count(plotly.offline.get_plotlyjs()) == 1
    own = page.replace(plotly.offline.get_plotlyjs(), "")
    assert "@import" not in own and "url(" not in own and "://" not in own
    policies = [a["content"] or "" for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert {path for path in finished.rglob("*") if path.name != "report.html"} == before


def test_same_files_give_the_same_bytes(finished):
    first = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == first


def test_scores_appear_as_they_are_in_the_results(finished):
    _, parsed = _read(finished)
    checkpoints = json.loads((finished / "evaluate" / "results.json").read_text())["checkpoints"]
    for name, entry in checkpoints.items():
        row = entry["overall"]
        assert name in parsed.visible
        assert f"{100 * row['pass@1']['mean']:.1f}{100 * row['pass@1']['low']:.1f}–" in parsed.visible
        assert f"{100 * row['cons@k']:.1f}" in parsed.visible
    for words in ("cons@4", "pass@1 by domain", "pass@1 by language", "30 held-out problems"):
        assert words in parsed.visible


def test_a_later_evaluation_adds_its_checkpoints_if_it_asked_the_same(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    rows = pq.read_table(run / "evaluate" / "completions.parquet").to_pylist()
    hacked = [{**row, "checkpoint": "hacked", "verdict": "fail"} for row in rows if row["checkpoint"] == "dev3"]
    for name, suite in (("evaluate_hacked", {}), ("evaluate_others", {"problem_seed": 7})):
        (run / name).mkdir()
        later = results([*hacked, *(row for row in rows if row["checkpoint"] == "dev3")])
        later["suite"] |= suite
        (run / name / "results.json").write_text(json.dumps(later), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(hacked), run / name / "completions.parquet")
    found = read_run(run)
    assert found.checkpoints == [*CHECKPOINTS, "hacked"] and len(found.completions) == len(rows) + len(hacked)
    assert found.unreadable == ["evaluate_others is left out of the scores: its problems or settings are others"]


def test_consensus_is_not_labelled_with_a_k_that_not_all_checkpoints_have(finished, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(finished, folder)
    path = folder / "evaluate" / "results.json"
    results = json.loads(path.read_text())
    results["checkpoints"]["base"]["overall"]["k"] = 16
    path.write_text(json.dumps(results))
    _, parsed = _read(folder)
    assert "4 completions each, base 16." in parsed.visible
    assert "cons@k" in parsed.visible and "cons@4" not in parsed.visible and "cons@16" not in parsed.visible


def test_a_report_knows_the_artifacts_it_shows(finished, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(finished, folder)
    assert not is_current(tmp_path)
    write_report(folder)
    assert is_current(folder)
    manifest = json.loads((folder / "zero" / "manifest.json").read_text())
    (folder / "zero" / "manifest.json").write_text(json.dumps(manifest | {"content_hash": "other"}))
    assert not is_current(folder)


def test_headline_has_numbers_machine_versions_and_time(finished):
    _, parsed = _read(finished)
    lead = r"RL alone took the base model from [\d.]+ to [\d.]+ % pass@1; the whole chain ended at"
    assert re.search(lead, parsed.visible)
    for fact in ("cpu (x86_64, 2 cores)", "torch 2.13.0", "17 min 12 s", "git 9c4f1f5000", "2026-01-01"):
        assert fact in parsed.visible


def test_every_finding_has_a_verdict_and_its_numbers(finished):
    page, parsed = _read(finished)
    assert page.count('<span class="chip good">holds</span>') >= 4
    assert "not measured" in parsed.visible and "Target: at least +25.0 points: met" in parsed.visible
    assert re.search(r"difference \+[\d.]+ points \[\+[\d.]+, \+[\d.]+\], 30 problems", parsed.visible)


def test_curves_samples_cards_and_lineage_are_there(finished):
    _, parsed = _read(finished)
    for title in (
        "Groups without signal",
        "KL to the reference",
        "Tokens clipped above",
        "Training loss, nats per token",
    ):
        assert title in parsed.visible
    for words in ("step 1", "step 30", "wrong answer", "2,410", "checkpoint ", "reasoning_rl (dev2)", "learning_rate"):
        assert words in parsed.visible
    assert "not made yet" not in parsed.visible


def test_expected_curves_are_shaded(finished, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "recipe" / "pipeline.yaml"
    shutil.copytree(finished, run)
    (run / "pipeline.json").write_text(json.dumps({"recipe": str(recipe)}))
    assert '"fill":"toself"' not in render(read_run(run))
    band = Band([1, 15, 30], low=[0.125, 0.25, 0.375], high=[0.5, 0.625, 0.75], window=1)
    Reference(config={}, runs=[], bands={"reward/mean": band}).write(recipe.parent / "curves" / "zero.json")
    page = render(read_run(run))
    assert page.count('"fill":"toself"') == 1 and '"y":[0.5,0.625,0.75,0.375,0.25,0.125]' in page


def test_counts_of_errors_have_a_chart_when_there_were_any(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    log = run / "zero" / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for place, record in enumerate(records):
        record |= {"reward/safety": 0.0, "reward/safety_errors": 0, "reward/safety_timeouts": int(place == 3)}
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = render(read_run(run))
    charts = [name for name in ("safety", "safety_errors", "safety_timeouts") if f"Reward part: {name}</b>" in page]
    assert charts == ["safety", "safety_timeouts"]


def test_an_axis_leaves_out_a_spike_and_nothing_else():
    plain = [float(place % 10) for place in range(100)]
    assert without_spikes([plain]) is None and without_spikes([]) is None
    low, high = without_spikes([[*plain[:50], 1e5, *plain[50:]]])
    assert -1 < low <= 2 and 7 <= high < 12
    assert without_spikes([[*plain, 20.0, *plain]]) is None
    falling = [10 / (1 + place) for place in range(1000)]
    assert without_spikes([falling]) is None
    _, high = without_spikes([[1.0, 1.1] * 100 + [50.0, 500.0, 5000.0, 5000.0, 5e7]])  # it blows up: that is no spike
    assert high > 5000
    short = [5.0] * 15
    low, high = without_spikes([[0.5, 0.6] * 200 + [1e4] + [0.5] * 9, short])
    assert low < 0.5 and high > 5


def test_model_output_cannot_become_markup(attacked):
    page, parsed = _read(attacked)
    _assert_loads_nothing(parsed)
    assert all("alert(" not in script for script in parsed.scripts[1:])
    assert "<script>alert(1)" in parsed.visible  # shown to the reader as text
    assert "\x00" not in page and "{0}&amp;amp;" in page


def test_attack_adds_no_tag(attacked, tmp_path):
    clean = make_run(tmp_path / "tiny", problems=12, steps=6)
    assert [tag for tag, _ in _read(clean)[1].tags] == [tag for tag, _ in _read(attacked)[1].tags]


def test_text_is_escaped_once_and_bad_characters_are_replaced():
    assert fill("<b>{}</b>", '<i>"&') == "<b>&lt;i&gt;&quot;&amp;</b>"
    assert fill("{}", fill("{}", "<")) == "&lt;"
    assert text("a\x00b\ud800c") == "a\ufffdb\ufffdc"
    assert text("a\u2028b中\n") == "a\u2028b中\n"


def test_empty_run_says_what_is_not_made_yet(tmp_path):
    _, parsed = _read(tmp_path)
    _assert_loads_nothing(parsed)
    assert "Nothing has been evaluated yet." in parsed.visible
    assert parsed.visible.count("not made yet") >= 5
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "gone",
    ["manifest.json", "metrics.jsonl", "samples.jsonl", "data_card.json", "results.json", "completions.parquet"],
)
def test_any_kind_of_file_may_be_missing(finished, tmp_path, gone):
    run = shutil.copytree(finished, tmp_path / "run")
    for path in run.rglob(gone):
        path.unlink()
    _, parsed = _read(run)
    assert "not made yet" in parsed.visible
    assert "Lineage" in parsed.visible


def test_run_that_has_only_begun(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished / "base", run / "base")
    shutil.copytree(finished / "zero", run / "zero")
    shutil.copytree(finished / "zero", run / "zero.old-1")
    (run / "zero" / "manifest.json").unlink()
    with (run / "zero" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "rewa')
    data = read_run(run)
    assert [stage.name for stage in data.stages] == ["base", "zero"]
    assert data.unreadable == [] and len(data.stages[1].metrics) == 30
    _, parsed = _read(run)
    assert "1 of 2" in parsed.visible and "zero: not made yet" in parsed.visible


def test_broken_files_are_named_not_fatal(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "evaluate" / "completions.parquet").write_bytes(b"PAR1 not really")
    (run / "zero" / "manifest.json").write_text("{")
    (run / "zero" / "metrics.jsonl").write_text('nonsense\n{"step": 1, "reward/mean": 0.5}\n')
    _, parsed = _read(run)
    for name in ("evaluate/completions.parquet", "zero/manifest.json", "zero/metrics.jsonl: 1 of 2 lines"):
        assert name.partition(":")[0] + " could not be read" in parsed.visible


def test_line_separators_inside_a_sample_do_not_split_it(tmp_path):
    (tmp_path / "zero").mkdir()
    line = json.dumps({"step": 1, "completion": "a\u2028b\x85c"}, ensure_ascii=False)
    (tmp_path / "zero" / "samples.jsonl").write_text(line + "\n", encoding="utf-8")
    assert read_run(tmp_path).stages[0].samples[0]["completion"] == "a\u2028b\x85c"


def test_parents_are_found_by_name_and_hash(finished):
    stages = {stage.name: stage for stage in read_run(finished).stages}
    found = {name: set(parent_stages(stage, list(stages.values()))) for name, stage in stages.items()}
    assert found["cold_start_sft"] == {"base", "cold_start_data"}
    assert found["base"] == set()
    assert {"general_rl", "student_rl"} <= found["evaluate"]


def test_lineage_draws_every_node_once_below_its_parents():
    parents = {"b": ["a"], "c": ["a", "b"], "d": ["a", "c", "unknown", "d"], "x": ["y"], "y": ["x"]}
    svg = lineage_svg([Node(name=n, title=n, caption="") for n in "abcdxy"], parents)
    tops = {
        title: float(top)
        for top, title in re.findall(r'<rect x="[\d.]+" y="([\d.]+)".*?font-weight="600">(\w)</text>', svg)
    }
    assert sorted(tops) == list("abcdxy")
    assert tops["a"] < tops["b"] < tops["c"] < tops["d"]
    assert lineage_svg([], {}).startswith("<svg")


def test_shown_problems_take_domains_in_turn():
    rows = [
        {"problem_id": f"{d}-{lang}-{i}", "domain": d, "language": lang}
        for i in (2, 1)
        for d in ("a", "b")
        for lang in ("en", "zh")
    ]
    assert chosen_problems(rows) == ["a-en-1", "b-zh-1", "a-zh-1", "b-en-1"]
    assert chosen_problems([]) == []


def test_moving_average_keeps_constants_and_length():
    assert moving_average([2.0] * 7, 3) == [2.0] * 7
    assert moving_average([0.0, 3.0, 6.0], 1) == [1.5, 3.0, 4.5]


def test_tokens_are_those_of_the_stage_that_made_the_checkpoint(tmp_path):
    """Stages and checkpoints have different names: dev3 is made by curated_sft."""
    run = make_run(tmp_path / "run")
    manifest = run / "curated_sft" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"counts": {"tokens_trained": 1234567}}))
    page = _Page(write_report(run).read_text(encoding="utf-8"))
    row = page.visible.partition("tokens learnt from")[2][:200]
    assert "1,234,567" in row
