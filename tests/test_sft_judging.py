"""Judges that answer, err, fall silent and die: what is counted, asked again, kept, and said."""

import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config import OPERATIONAL
from data.families import problem as family_problem
from data.instructions import instruction_problem
from data.preferences import PreferencePair
from rewards.endpoint import Endpoint
from rewards.endpoint_config import EndpointConfig
from rewards.verdicts import Conversation
from rollouts.config import GeneratorConfig, RolloutConfig
from rollouts.records import Completion, Group
from sft import judging
from sft.judges import Answer, CheckpointJudge, EndpointJudge, RuleJudge
from sft.judging import Judgement, Question, judge_all
from sft.preference_config import JudgeConfig
from sft.preference_stats import balanced, judging_stats
from tests.chat_server import Server, said
from training.stage import StageError

PROBLEM = instruction_problem(0, "train", "en", 0)
RULE = JudgeConfig(kind="rule")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch):
    monkeypatch.setattr(judging, "PAUSE_S", 0.0)


def questions(count):
    return [Question(key=f"q{n}", problem=PROBLEM, responses=(f"first {n}", f"second {n}")) for n in range(count)]


class Scripted:
    """Answers with `reply(query)`, an Answer or a text; None is a kill."""

    def __init__(self, reply):
        self.reply, self.asked = reply, []

    def ask(self, queries):
        for query in queries:
            answer = self.reply(query)
            if answer is None:
                raise KeyboardInterrupt
            self.asked.append((query.key, query.attempt))
            yield query, Answer(text=answer) if isinstance(answer, str) else answer

    def late(self):
        return []

    def close(self): ...


def prefers_first_response(query):
    return "[[A>>B]]" if query.shown[0].startswith("first") else "[[B>A]]"


def run(judge, folder, count=6, config=RULE, queries=4):
    folder.mkdir(exist_ok=True)
    return judge_all(questions(count), judge, config, queries=queries, seed=0, journal=folder / "journal.jsonl")


def test_both_orders_are_asked_and_put_back(tmp_path):
    judged = run(Scripted(prefers_first_response), tmp_path)
    for judgement in judged.judgements.values():
        assert sorted(judgement.swapped) == [False, False, True, True]
        assert judgement.mean == 1.5
    assert judged.queries == judged.answers == 24 and not judged.faults
    starts = {judgement.swapped[0] for judgement in judged.judgements.values()}
    assert starts == {True, False}, "which order comes first must be random"


@pytest.mark.parametrize("killed_after", [0, 1, 7, 23])
def test_a_resumed_stage_asks_nothing_twice(tmp_path, killed_after):
    answers = iter(range(killed_after))
    first = Scripted(lambda query: prefers_first_response(query) if next(answers, None) is not None else None)
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    with (tmp_path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"key": "q0/0", "att')  # a kill in the middle of a line
    second = Scripted(prefers_first_response)
    resumed = run(second, tmp_path)
    assert Counter(first.asked + second.asked) == Counter((f"q{q}/{n}", 0) for q in range(6) for n in range(4))
    assert resumed == run(Scripted(lambda query: None), tmp_path), "everything is in the journal"
    assert resumed.judgements == run(Scripted(prefers_first_response), tmp_path / "fresh").judgements


def test_unreadable_answers_are_asked_again_and_counted(tmp_path):
    judge = Scripted(lambda q: "no idea" if q.attempt < 2 and q.key == "q1/0" else prefers_first_response(q))
    judged = run(judge, tmp_path)
    assert judged.faults == {"unreadable": 2} and judged.failed == 0 and judged.answers == 26
    assert [attempt for key, attempt in judge.asked if key == "q1/0"] == [0, 1, 2]


def test_a_query_without_a_verdict_is_left_out_within_the_limit(tmp_path):
    config = RULE.model_copy(update={"failed_limit": 0.2})
    judged = run(Scripted(lambda q: "?" if q.key == "q1/0" else prefers_first_response(q)), tmp_path, config=config)
    assert judged.failed == 1 and len(judged.judgements["q1"].values) == 3 and judged.unjudged == 0
    judged = run(
        Scripted(lambda q: "?" if q.key < "q1/3" and q.key > "q1" else prefers_first_response(q)),
        tmp_path / "fresh",
        config=config,
    )
    assert judged.unjudged == 1 and "q1" not in judged.judgements


def test_too_many_queries_without_a_verdict_stop_the_stage(tmp_path):
    with pytest.raises(StageError, match=r"4 of 24 queries have no readable verdict after 3 retries \(16 unreadable\)"):
        run(Scripted(lambda q: "?" if q.key.startswith("q1/") else prefers_first_response(q)), tmp_path)


def test_a_judge_that_writes_nonsense_is_stopped_early(tmp_path):
    judge = Scripted(lambda query: "lorem ipsum")
    with pytest.raises(StageError, match=r"50 of its first 50 answers hold no verdict, e.g. 'lorem ipsum'"):
        run(judge, tmp_path, count=1000)
    assert len(judge.asked) == 50


def test_a_few_refusals_among_many_answers_stop_no_stage(tmp_path):
    """A second round asks only what failed before: all of its answers hold no verdict, however good the judge is."""
    refusal = Answer(fault="refused", detail="too long")

    def reply(query):
        number = int(query.key.split("/")[0][1:]) % 40
        return (refusal, "?", prefers_first_response(query))[min(number, 2)]

    config = RULE.model_copy(update={"failed_limit": 0.1, "retries": 1})
    judged = run(Scripted(reply), tmp_path, count=280, config=config)
    assert judged.failed == 56 and len(judged.judgements) == 266
    again = Scripted(reply)
    more = config.model_copy(update={"retries": 2})
    assert run(again, tmp_path, count=280, config=more).failed == 56 and len(again.asked) == 56


def test_a_judge_that_refuses_everything_is_no_nonsense(tmp_path):
    judge = Scripted(lambda query: Answer(fault="refused", detail="too long"))
    with pytest.raises(StageError, match=r"80 of 80 queries have no readable verdict .*320 refused"):
        run(judge, tmp_path, count=20)


def test_a_stage_goes_on_with_a_judge_that_was_mended(tmp_path):
    with pytest.raises(StageError, match=r"hold no verdict, e\.g\. cut off"):
        run(Scripted(lambda query: Answer(detail="cut off")), tmp_path, count=100)
    assert run(Scripted(prefers_first_response), tmp_path, count=100).failed == 0


def test_more_retries_may_be_tried_on_what_failed(tmp_path):
    with pytest.raises(StageError, match=r"16 of 40 queries .*raise judge.retries and run it again"):
        run(Scripted(lambda q: "?" if q.key < "q4" else prefers_first_response(q)), tmp_path, count=10)
    more = JudgeConfig(kind="rule", retries=4)
    assert OPERATIONAL in JudgeConfig.model_fields["retries"].metadata, "else it would be another recipe"
    judge = Scripted(prefers_first_response)
    assert run(judge, tmp_path, count=10, config=more).failed == 0 and len(judge.asked) == 16


def test_a_dead_judge_is_given_up_and_nothing_is_lost(tmp_path):
    down = Answer(fault="unreachable", detail="connection refused")
    answers = iter(range(10))
    judge = Scripted(lambda q: prefers_first_response(q) if next(answers, None) is not None else down)
    with pytest.raises(StageError, match=r"30 of 40 queries have no answer after 3 retries .*kept") as caught:
        run(judge, tmp_path, count=10)
    assert caught.value.retry
    assert len(judge.asked) == 10 + 4 * judging.SILENT_IN_A_ROW
    back = Scripted(prefers_first_response)
    assert len(run(back, tmp_path, count=10).judgements) == 10 and len(back.asked) == 30


def test_a_cut_off_answer_has_no_verdict(tmp_path):
    judge = Scripted(lambda q: Answer(text=prefers_first_response(q), truncated=q.attempt == 0 and q.key == "q1/0"))
    assert run(judge, tmp_path).faults == {"unreadable": 1} and ("q1/0", 1) in judge.asked
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    (cut,) = [row for row in rows if row["fault"]]
    assert (cut["key"], cut["value"], cut["detail"]) == ("q1/0", None, "the answer was cut off")


def test_a_pair_with_verdicts_in_one_order_is_left_out(tmp_path):
    config = RULE.model_copy(update={"failed_limit": 0.5})
    silent = [number for number in range(4) if judging._is_swapped(questions(2)[1], number, 0)]
    keys = {f"q1/{number}" for number in silent}
    judged = run(Scripted(lambda q: "?" if q.key in keys else prefers_first_response(q)), tmp_path, 2, config)
    assert judged.unjudged == 1 and set(judged.judgements) == {"q0"}
    one_left = keys - {min(keys)}
    judged = run(Scripted(lambda q: "?" if q.key in one_left else prefers_first_response(q)), tmp_path / "b", 2, config)
    assert judged.unjudged == 0 and len(judged.judgements["q1"].values) == 3


def test_a_single_query_and_labels_know_one_order(tmp_path):
    assert len(run(Scripted(prefers_first_response), tmp_path, queries=1).judgements) == 6
    label = Question(key="l", problem=PROBLEM, responses=("hello",))
    judge = Scripted(lambda query: "[[safe]]" if query.key < "l/3" else "[[unsafe]]")
    judged = judge_all([label], judge, RULE, queries=4, seed=0, journal=tmp_path / "labels.jsonl")
    assert judged.judgements["l"].mean == 0.75


@given(worth=st.integers(-1, 1), bias=st.integers(-1, 1), shown=st.lists(st.booleans(), min_size=1, max_size=6))
def test_a_bias_for_a_place_cancels_out_however_many_verdicts_each_order_has(worth, bias, shown):
    swapped = (*shown, not shown[0])
    values = tuple(worth + (-bias if is_swapped else bias) for is_swapped in swapped)
    assert Judgement(values=values, swapped=swapped).mean == pytest.approx(worth)


def endpoint(server, **keys):
    return Endpoint(EndpointConfig(url=server.url, model="judge", **keys))


def test_an_endpoint_is_asked_in_arena_hards_words_with_its_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    server = Server(lambda number, body: said("I would say so. [[A>>B]]"))
    judged = run(EndpointJudge(endpoint(server, api_key_env="JUDGE_KEY"), "guidelines"), tmp_path)
    assert len(judged.judgements) == 6 and all(j.mean == 0 for j in judged.judgements.values())
    path, key, body = server.asked[0]
    assert (path, key, body["model"], body["temperature"]) == ("/v1/chat/completions", "Bearer s3cret", "judge", 0)
    system, user = body["messages"]
    assert "generating your own answer" in system["content"] and PROBLEM.question in user["content"]
    assert "s3cret" not in (tmp_path / "journal.jsonl").read_text()
    stats = judging_stats(judged, questions(6))
    assert stats["first_preferred"] == 1.0 and stats["order_flips"] == 1.0


def test_busy_garbled_and_slow_answers_of_an_endpoint_are_asked_again(tmp_path):
    replies = {1: (503, "busy"), 2: (429, "slow down"), 3: (200, "<html>"), 4: (200, [4.5, "late"]), 5: (200, "{}")}
    server = Server(lambda number, body: replies.get(number) or said("[[A=B]]"))
    judge = EndpointJudge(endpoint(server, deadline_s=3.0), "guidelines")
    judged = run(judge, tmp_path)
    assert judged.faults == {"unreachable": 2, "unreadable": 2, "timeout": 1} and judged.failed == 0
    assert len(server.asked) == 24 + 5


@pytest.mark.parametrize(("configured", "again"), [(0.0, 1.0), (0.7, 1.0), (1.5, 1.5)])
def test_only_an_unreadable_answer_raises_the_temperature(tmp_path, configured, again):
    replies = {1: (503, "busy"), 2: (400, "no"), 3: said("I like both.")}
    server = Server(lambda number, body: replies.get(number) or said("[[A=B]]"))
    judge = EndpointJudge(endpoint(server, temperature=configured, concurrency=1), "guidelines")
    run(judge, tmp_path, count=1, queries=1)
    assert [body["temperature"] for _, _, body in server.asked] == [configured, configured, configured, again]


def test_answers_of_an_endpoint_are_read_after_their_reasoning_and_when_they_are_whole(tmp_path):
    replies = {1: said("<think>Or [[A>>B]]?</think>\n[[B>A]]"), 2: said("[[A>>B]]", finish="length")}
    server = Server(lambda number, body: replies.get(number) or said("[[A=B]]"))
    judged = run(EndpointJudge(endpoint(server, concurrency=1), "guidelines"), tmp_path, count=1, queries=2)
    assert sorted(map(abs, judged.judgements["q0"].values)) == [0, 1] and judged.faults == {"unreadable": 1}


def test_a_server_that_drips_does_not_outlast_the_deadline():
    server = Server(lambda number, body: (200, [part for _ in range(100) for part in ("x", 0.05)]))
    with pytest.raises(TimeoutError):  # without a deadline for the whole, an answer would come after five seconds
        endpoint(server, deadline_s=0.3).complete([])


@pytest.mark.parametrize(("status", "says"), [(401, "endpoint.api_key_env"), (404, "endpoint.model")])
def test_what_no_retry_can_mend_stops_at_once(tmp_path, status, says):
    server = Server(lambda number, body: (status, "no"))
    with pytest.raises(StageError, match=f"status {status}.*{says}"):
        run(EndpointJudge(endpoint(server, concurrency=1), "guidelines"), tmp_path)
    assert len(server.asked) < 10


def test_an_answer_that_breaks_off_is_asked_again_and_never_read(tmp_path):
    whole = json.dumps({"choices": [{"message": {"content": "[[A>B]]"}}]})
    broken = (200, whole[:20], ("Content-Length", str(len(whole))))
    chunked = (200, f"{len(whole):x}\r\n{whole[:20]}", ("Transfer-Encoding", "chunked"))
    server = Server(lambda number, body: {1: broken, 2: chunked}.get(number) or said("[[A=B]]"))
    judged = run(EndpointJudge(endpoint(server), "guidelines"), tmp_path)
    assert judged.faults == {"unreachable": 2} and judged.failed == 0
    assert "broke off" in (tmp_path / "journal.jsonl").read_text()


@pytest.mark.parametrize("error", [{"error": {"code": 502}}, {"choices": [{"error": {"code": 502}, "message": {}}]}])
def test_an_error_under_status_200_is_no_answer(error):
    server = Server(lambda number, body: (200, json.dumps(error)))
    with pytest.raises(ConnectionError, match=r"status 200 with an error: .*502"):
        endpoint(server).complete([])


@pytest.mark.parametrize(("retry_after", "seconds"), [("7", 7), ("0", 1), ("Thu, 26 Nov 2020 08:00:00 GMT", 1)])
def test_a_busy_server_is_asked_again_when_it_says(monkeypatch, retry_after, seconds):
    slept = []
    monkeypatch.setattr("rewards.endpoint.time.sleep", slept.append)
    busy = 429, "slow down", ("Retry-After", retry_after)
    server = Server(lambda number, body: busy if number == 1 else said("[[A>B]]"))
    assert endpoint(server).complete([]) == ("[[A>B]]", False)
    assert slept == [seconds] and len(server.asked) == 2


@pytest.mark.parametrize("retry_after", ["3600", "soon", "9" * 400])
def test_nobody_waits_past_the_deadline_for_a_busy_server(retry_after):
    server = Server(lambda number, body: (429, "slow down", ("Retry-After", retry_after)))
    with pytest.raises(ConnectionError, match="status 429: slow down"):
        endpoint(server).complete([])
    assert len(server.asked) == 1


def test_answers_that_were_on_their_way_are_kept_when_the_stage_stops(tmp_path):
    """The first query is refused for good while three others are being answered: those are paid for."""
    order, together = itertools.count(), threading.Barrier(4)

    def reply(number, body):
        place = next(order)
        if place < 4:
            together.wait(10)
        return (401, "no") if place == 0 else (200, [0.3, said("[[A>B]]")[1]])

    server = Server(reply)
    judge = EndpointJudge(endpoint(server, concurrency=4), "guidelines")
    with pytest.raises(StageError, match="status 401"):
        run(judge, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len(rows) == len(server.asked) - 1 >= 3 and all(row["value"] is not None for row in rows)
    server.reply = lambda number, body: said("[[A>B]]")
    asked_before = len(server.asked)
    assert run(judge, tmp_path).failed == 0
    assert len(server.asked) == asked_before + 24 - len(rows), "what is kept is not asked again"


def test_no_message_and_no_file_holds_a_key_that_the_server_repeats(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret-" * 50 + "\r\n")  # longer than what is kept of an error
    statuses = iter([400, 503, 200])

    def reply(number, body):
        status, key = next(statuses, 401), server.asked[-1][1].removeprefix("Bearer ")
        return status, json.dumps({"error": f"wrong key {key}"}), ("Content-Type", "application/json")

    server = Server(reply)
    judge = EndpointJudge(endpoint(server, api_key_env="JUDGE_KEY", concurrency=1), "guidelines")
    with pytest.raises(StageError, match=r"status 401.*wrong key …") as caught:
        run(judge, tmp_path)
    assert server.asked[0][1] == "Bearer " + "s3cret-" * 50
    journal = (tmp_path / "journal.jsonl").read_text()
    assert "s3cret" not in journal + str(caught.value)
    assert [row["detail"].count("wrong key …") for row in map(json.loads, journal.splitlines())] == [1, 1, 1]


@pytest.mark.parametrize("key", ["s3cret\r\nHost: x", "s3cret\x00", "s3cret\u200b"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(monkeypatch, key):
    monkeypatch.setattr("os.environ", {"JUDGE_KEY": key})
    with pytest.raises(StageError, match=r"JUDGE_KEY .*no HTTP header can carry") as caught:
        Endpoint(EndpointConfig(url="http://127.0.0.1:1/v1", model="m", api_key_env="JUDGE_KEY"))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/v1?key=s3cret", "https://h/v1#s3cret", "ftp://u:s3cret@h/v1"])
def test_an_address_holds_no_key(url):
    with pytest.raises(ValidationError) as caught:
        EndpointConfig(url=url, model="m")
    [fault] = caught.value.errors()
    assert "endpoint.api_key_env" in fault["msg"] and "s3cret" not in fault["msg"]


def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(StageError, match=r"JUDGE_KEY .* is not set"):
        Endpoint(EndpointConfig(url="http://127.0.0.1:1/v1", model="m", api_key_env="JUDGE_KEY"))


def test_the_rule_judge_repeats_itself(tmp_path):
    first = run(RuleJudge(RULE.rule), tmp_path)
    assert first == run(RuleJudge(RULE.rule), tmp_path / "again")


def test_statistics_of_a_judge_without_bias(tmp_path):
    judged = run(Scripted(prefers_first_response), tmp_path)
    stats = judging_stats(judged, questions(6))
    assert (stats["first_preferred"], stats["order_flips"], stats["agreement"]) == (0.5, 0.0, 1.0)
    assert stats["longer_preferred"] == 0.0, "'second 1' is longer than 'first 1'"


def test_disagreeing_queries_are_counted_in_pairs():
    judged = judging.Judged(judgements={"q0": Judgement(values=(2, 1, -1, 0), swapped=(False, True, False, True))})
    assert judging_stats(judged, questions(1))["agreement"] == pytest.approx(1 / 6)


def pair(number, chosen, rejected):
    return PreferencePair(id=f"{number}", prompt="q", chosen="a" * chosen, rejected="b" * rejected)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=60))
def test_balancing_never_makes_it_worse_and_drops_one_side_only(lengths):
    pairs = [pair(number, *each) for number, each in enumerate(lengths)]
    kept = balanced(pairs, 0.05)

    def surplus(pairs):
        return sum(len(p.chosen) - len(p.rejected) for p in pairs)

    assert abs(surplus(kept)) <= abs(surplus(pairs)) and surplus(kept) * surplus(pairs) >= 0
    sides = {len(p.chosen) > len(p.rejected) for p in pairs if p not in kept}
    assert len(sides) <= 1 and kept == [p for p in pairs if p in kept]


def test_balancing_brings_mean_lengths_together():
    kept = balanced([pair(n, 20 + n % 30, 20) for n in range(200)] + [pair(200 + n, 20, 35) for n in range(100)], 0.05)
    chosen, rejected = (sum(len(getattr(p, side)) for p in kept) / len(kept) for side in ("chosen", "rejected"))
    assert abs(chosen - rejected) <= 0.05 * (chosen + rejected) / 2 and len(kept) > 200


def test_balancing_stops_where_it_would_leave_little():
    alike = [pair(n, 100, 50) for n in range(100)]
    assert balanced(alike, 0.05) == []
    assert len(balanced(alike, 0.05, drop_limit=0.5)) == 50
    assert balanced(alike, 0.05, drop_limit=0.0) == alike


def test_the_rule_judge_refuses_prompts_it_does_not_know(tmp_path):
    stranger = Question(key="q", problem=family_problem("chain_sum", 1, 0, "train", "en", 0), responses=("5", "6"))
    with pytest.raises(StageError, match="kind rule is for the tiny chain's own instructions"):
        judge_all([stranger], RuleJudge(RULE.rule), RULE, queries=2, seed=0, journal=tmp_path / "journal.jsonl")


class Pool:
    """A judge's generators that are cut off at the first try, and remember how they were asked."""

    def __init__(self, checkpoint, config, places):
        self.asked = []

    def context(self):
        return 10_000

    def stream(self, requests, params):
        for request in requests:
            self.asked.append((request.key, params.temperature))
            finish = "length" if request.key == "q0/0#0" else "stop"
            completion = Completion(
                token_ids=np.zeros(1, np.int32), sampling_logprobs=np.zeros(1, np.float32),
                policy_versions=np.zeros(1, np.int32),
                finish_reason=finish, text="<think>[[A>>B]]?</think>\n> [[A>>B]]</think>\n[[B>A]]",
            )  # fmt: skip
            yield Group(key=request.key, prompt_ids=request.prompt_ids, completions=[completion])

    def close(self): ...


@pytest.mark.parametrize(("configured", "again"), [(0.0, 1.0), (0.7, 1.0), (1.5, 1.5)])
def test_a_checkpoint_is_asked_again_where_it_was_cut_off(tmp_path, tiny_checkpoint, monkeypatch, configured, again):
    monkeypatch.setattr("sft.judges.GeneratorPool", Pool)
    monkeypatch.setattr("sft.judges.start_ray", lambda: None)
    rollout = RolloutConfig(template="plain", temperature=configured)
    judge = CheckpointJudge(tiny_checkpoint, rollout, GeneratorConfig(), "guidelines", seed=0)
    judged = run(judge, tmp_path, count=1, queries=2)
    assert judge.pool.asked == [("q0/0#0", configured), ("q0/1#0", configured), ("q0/0#1", again)]
    assert judged.faults == {"unreadable": 1} and judged.judgements["q0"].mean == 0, "B each time, in both orders"


@pytest.mark.slow
def test_a_checkpoint_judges_by_sampling_and_refuses_what_does_not_fit(
    tmp_path, tiny_checkpoint, ray_session, monkeypatch
):
    rollout = RolloutConfig(template="plain", temperature=0.0, max_new_tokens=6)
    judge = CheckpointJudge(tiny_checkpoint, rollout, GeneratorConfig(replicas=1), "guidelines", seed=0)
    config = RULE.model_copy(update={"retries": 1})
    try:
        with pytest.raises(StageError, match=r"8 of 8 queries have no readable verdict .*16 refused"):
            run(judge, tmp_path / "long", count=2, config=config)
        row = json.loads((tmp_path / "long" / "journal.jsonl").read_text().splitlines()[0])
        assert "no room to answer in its context of 128" in row["detail"]

        monkeypatch.setattr("sft.judges.question_of", lambda query, guidelines: Conversation("Judge.", query.shown[0]))
        with pytest.raises(StageError, match=r"8 of 8 queries have no readable verdict .*16 unreadable"):
            run(judge, tmp_path / "short", count=2, config=config)
        rows = [json.loads(line) for line in (tmp_path / "short" / "journal.jsonl").read_text().splitlines()]
        first = {row["key"]: row["text"] for row in rows if row["attempt"] == 0}
        second = {row["key"]: row["text"] for row in rows if row["attempt"] == 1}
        assert len(first) == len(second) == 8 and first != second, "the second try is no longer greedy"
    finally:
        judge.close()
