"""What `r1 view` serves, asked over HTTP."""

import json
import os
import re
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Thread
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

from pipeline.cli import main
from pipeline.curves import references_of
from pipeline.view_command import describe
from tests.recorded_run import NASTY, append, completion, make_run, write_groups
from viewing.access import Access
from viewing.answers import Answers
from viewing.cluster_state import cluster_of
from viewing.flags import FLAGS
from viewing.runs import name_runs
from viewing.server import make_server


@contextmanager
def served(*folders, access=None):
    server = make_server(
        Answers(name_runs(folders), describe, references_of), access or Access("127.0.0.1"), "127.0.0.1", 0
    )
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(port, path, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def ask(port, what, /, **query):
    response, body = get(port, f"/api/{what}?{urlencode(query, doseq=True)}")
    assert response.status == 200, body
    return json.loads(body)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("view"))


@pytest.fixture(scope="module")
def port(run):
    with served(run) as port:
        yield port


def test_curves_follow_the_log_as_lines_are_appended_and_taken_back(tmp_path):
    run = make_run(tmp_path)
    log = run / "zero" / "metrics.jsonl"
    with served(run) as port:

        def curve():
            return ask(port, "curves", of="demo/zero", name="reward/mean")["curves"]["demo/zero"]["reward/mean"]

        before = curve()
        assert before[0] == list(range(1, 41))
        log.open("a").write('{"step": 41, "reward/mean": 2.0}\n{"step": 42, "rew')  # the last line is not whole yet
        assert curve() == [[*before[0], 41], [*before[1], 2.0]]
        kept = log.read_bytes().splitlines(keepends=True)[:10]
        (log.parent / "new").write_bytes(b"".join(kept))
        os.replace(log.parent / "new", log)  # as a resumed stage does
        append(log, {"step": 11, "reward/mean": 7.0})
        assert curve() == [list(range(1, 12)), [*before[1][:10], 7.0]]


def test_stages_of_two_runs_are_told_apart(run, tmp_path):
    other = make_run(tmp_path)
    with served(run, other) as port:
        names = [entry["run"] for entry in ask(port, "runs")]
        assert names == [str(run), str(other)]
        curves = ask(port, "curves", of=[f"{name}/zero" for name in names], name="time/sample_s")["curves"]
        assert all(len(found["time/sample_s"][0]) == 40 for found in curves.values())


@pytest.mark.parametrize(
    ("flag", "group"),
    [("unscorable", "error"), ("truncated", "cut"), ("language-mixed", "mixed"), ("hacked", "hacked"),
     ("no signal", "alike")],
)  # fmt: skip
def test_every_filter_finds_its_group(port, flag, group):
    found = ask(port, "groups", run="demo", stage="zero", flag=flag)
    assert group in [entry["group"] for entry in found["groups"]]
    assert found["step"] == 5 and found["total"] <= 2 and set(found["flags"]) == set(FLAGS)


def test_groups_are_found_by_domain_and_over_all_batches(port):
    found = ask(port, "groups", run="demo", stage="zero", step="all")
    assert found["steps"] == [1, 5] and found["total"] == 7
    assert [entry["group"] for entry in ask(port, "groups", run="demo", stage="zero", domain="logic")["groups"]] == [
        "alike"
    ]


def test_groups_come_in_pages(tmp_path):
    run = make_run(tmp_path)
    write_groups(run / "zero", 9, [completion("x", 0, group=f"g{i}") for i in range(45)])
    with served(run) as port:
        pages = [ask(port, "groups", run="demo", stage="zero", page=page) for page in range(4)]
    assert [len(page["groups"]) for page in pages] == [20, 20, 5, 0] and pages[0]["pages"] == 3
    assert len({entry["group"] for page in pages for entry in page["groups"]}) == 45


def test_what_the_watch_says_marks_high_rewards_as_hacked(tmp_path):
    run = make_run(tmp_path)
    rows = [completion("liked", 0, parts=[("helpful", 0.9)]), completion("plain", 1, parts=[("helpful", 0.5)])]
    write_groups(run / "zero", 60, rows)
    with served(run) as port:
        assert ask(port, "groups", run="demo", stage="zero", flag="hacked")["total"] == 0
        append(run / "zero" / "metrics.jsonl", {"step": 57, "watch/parted": 1.0})
        flags = [c["flags"] for c in ask(port, "group", run="demo", stage="zero", step=60, group="g0")["completions"]]
        assert flags == [["hacked"], []]
        assert ask(port, "groups", run="demo", stage="zero", flag="hacked")["total"] == 1


def test_a_group_has_all_completions_token_by_token(port):
    group = ask(port, "group", run="demo", stage="zero", step=5, group="nasty")
    assert group["prompt"] == "What is 3+4?" and group["tokenizer"]
    for told in group["completions"]:
        assert "".join(told["tokens"]) == told["text"]  # also where a character is of several tokens
        assert len(told["tokens"]) == len(told["logprobs"]) == len(told["mismatch"]) == told["length"]
    assert max(group["completions"][1]["mismatch"]) == pytest.approx(2e-4, rel=0.01)


def test_without_a_tokenizer_there_is_the_text(tmp_path):
    run = make_run(tmp_path)
    (run / "base" / "tokenizer.json").unlink()
    with served(run) as port:
        group = ask(port, "group", run="demo", stage="zero", step=5, group="mixed")
    assert not group["tokenizer"] and group["completions"][0]["tokens"] is None and group["completions"][0]["text"]


def test_what_a_model_wrote_is_never_served_as_a_page(port):
    response, body = get(port, "/api/group?run=demo&stage=zero&step=5&group=nasty")
    assert NASTY in json.loads(body)["question"]
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    policy = response.headers["Content-Security-Policy"]
    assert "script-src 'self';" in policy and "default-src 'none'" in policy


def test_a_broken_file_is_named_and_the_others_are_shown(tmp_path):
    run = make_run(tmp_path)
    (run / "zero" / "groups" / "step_00000009.parquet").write_bytes(b"torn")
    with served(run) as port:
        found = ask(port, "groups", run="demo", stage="zero", step="all")
    assert found["total"] == 7 and "step_00000009.parquet" in found["unreadable"][0]


def test_timeline_is_measured_or_laid_end_to_end(tmp_path):
    run = make_run(tmp_path)
    with served(run) as port:
        found = ask(port, "timeline", run="demo", stage="zero", first=40)
        assert found["measured"] and {span["who"] for span in found["spans"]} == {
            "generator_0", "generator_1", "rewards_0", "trainer",
        }  # fmt: skip
    (run / "zero" / "timeline.jsonl").unlink()
    with served(run) as port:
        found = ask(port, "timeline", run="demo", stage="zero")
    assert not found["measured"] and len(found["spans"]) == 80
    starts, ends = zip(*[(s["start"], s["start"] + s["seconds"]) for s in found["spans"]], strict=True)
    assert starts[1:] == pytest.approx(ends[:-1])


@pytest.mark.parametrize(
    "path",
    ["/..%2f..%2fetc/passwd", "/../pyproject.toml", "/api/nothing", "/api/curves?of=demo/..&name=x",
     "/api/groups?run=..&stage=zero", "/api/group?run=demo&stage=../demo/zero&step=5&group=nasty",
     "/api/groups?run=demo&stage=zero&page=x", "/api/groups?run=demo&stage=zero&flag=x"],
)  # fmt: skip
def test_nothing_outside_the_runs_can_be_asked_for(port, path):
    response, _ = get(port, path)
    assert response.status in (400, 404)


def test_everything_the_page_needs_is_served_from_here(port):
    waiting, seen = ["/"], {}
    while waiting:
        name = waiting.pop()
        response, content = get(port, name)
        assert response.status == 200 and content, name
        seen[name] = response.headers["Content-Type"]
        if not name.endswith("plotly.min.js"):
            assert b"http:" not in content and b"https:" not in content
            linked = re.findall(rb'(?:src="|from "|href=")(?:\./)?([\w.]+\.(?:js|css))"', content)
            waiting += [f"/{link.decode()}" for link in linked if f"/{link.decode()}" not in seen]
    assert seen["/plotly.min.js"].startswith("text/javascript") and len(seen) == 11


def test_another_name_for_this_machine_is_refused(port):
    assert get(port, "/api/runs", Host="rebound.example.org")[0].status == 421
    assert get(port, "/api/runs", Host=f"localhost:{port}")[0].status == 200
    assert get(port, "/api/runs", **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"})[0].status == 403


def test_an_open_address_asks_for_the_token(run):
    access = Access("0.0.0.0")
    with served(run, access=access) as port:
        assert get(port, "/api/runs")[0].status == 401
        assert get(port, "/?token=wrong")[0].status == 401
        response, _ = get(port, f"/?token={access.token}")
        assert (response.status, response.headers["Location"]) == (303, "/")
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
        assert get(port, "/api/runs", Cookie=cookie.partition(";")[0])[0].status == 200
        assert get(port, "/api/runs", Authorization=f"Bearer {access.token}")[0].status == 200
        assert get(port, "/api/runs", Cookie="r1_view_0=x")[0].status == 401
    assert Access("127.0.0.1").token is None and Access("127.0.0.1", with_token=True).token


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    result = CliRunner().invoke(main, ["view", str(tmp_path)])
    assert result.exit_code == 2 and "is not a run folder" in result.output


def test_a_trace_fits_the_trace_event_format(run, tmp_path):
    result = CliRunner().invoke(main, ["trace", str(run), str(tmp_path / "trace.json")])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "trace.json").read_text())
    events = written["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 160 and {event["ph"] for event in events} == {"X", "M"}
    for event in spans:
        assert event["ts"] >= 0 and event["dur"] >= 0 and {"name", "cat", "pid", "tid", "args"} <= event.keys()
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {threads[s["pid"], s["tid"]] for s in spans} == {"generator_0", "generator_1", "rewards_0", "trainer"}
    first = [s for s in spans if s["args"]["step"] == 2 and s["name"] == "update"]
    assert (first[0]["ts"], first[0]["dur"]) == (16e6, 3e6)  # microseconds since the first span


@pytest.mark.slow
def test_a_cluster_is_found_by_the_process_of_its_run(ray_session, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "no process of this run" in cluster_of(tmp_path)["reason"]
    (tmp_path / ".lock").write_text(str(os.getpid()))
    found = cluster_of(tmp_path)
    assert [node["alive"] for node in found["nodes"]] == [True] and "actors" in found
