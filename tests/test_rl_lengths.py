"""Guessed completion lengths."""

from data.problems import Problem
from rl.lengths import LengthHistory


def problem(domain: str, language: str = "en") -> Problem:
    messages = ({"role": "user", "content": "?"},)
    return Problem(id="p", messages=messages, ground_truth="", checker="math", domain=domain, language=language)


def test_nothing_is_known_at_first():
    assert LengthHistory().expected(problem("sums")) == 0.0


def test_a_kind_is_expected_to_be_as_long_as_it_was_and_the_recent_counts_more():
    history = LengthHistory()
    history.learn([(problem("sums"), 10.0), (problem("sums"), 30.0), (problem("proofs"), 400.0)])
    assert history.expected(problem("sums")) == 20.0
    assert history.expected(problem("sums", "zh")) == 210.0  # of all kinds, since its own is new
    for _ in range(20):
        history.learn([(problem("sums"), 100.0)])
    assert abs(history.expected(problem("sums")) - 100.0) < 1e-3
    assert history.expected(problem("proofs")) == 400.0


def test_what_was_learnt_survives_a_checkpoint(tmp_path):
    history, again = LengthHistory(), LengthHistory()
    history.learn([(problem("sums"), 10.0)])
    history.save(tmp_path / "lengths.json")
    again.load(tmp_path / "lengths.json")
    assert again.means == history.means
    again.load(tmp_path / "missing.json")
    assert again.means == {}
