"""Votes and their count."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.preferences import RankedResponses
from rewards.grm import Vote, ballot, cast_votes, count_votes, read_vote, scaled, shuffled_orders
from rewards.judges import Answer
from tests.toy_judges import ByLength, NoRoom


def vote(*scores: int) -> Vote:
    return Vote(order=tuple(range(len(scores))), text="", scores=scores)


LOST = Vote(order=(0, 1), text="?", scores=None, fault="no_scores")


@given(order=st.permutations(range(4)), scores=st.lists(st.integers(1, 10), min_size=4, max_size=4))
def test_scores_come_back_in_the_order_of_the_responses(order, scores):
    shown = [scores[response] for response in order]
    assert read_vote(order, Answer(f"Scores: {shown}")).scores == tuple(scores)


def test_a_judge_that_only_looks_at_the_place_favours_no_response():
    """It gives 9 to what it sees first: shuffled orders take away its say."""
    wins = Counter()
    for item in range(300):
        orders = shuffled_orders(2, 9, seed=1, key=f"item {item}")
        wins[count_votes([read_vote(order, Answer("Scores: [9, 2]")) for order in orders], 1, f"{item}").best] += 1
    assert 110 < wins[0] < 190


def test_totals_are_sums_over_the_votes_that_can_be_read():
    count = count_votes([vote(7, 3), vote(5, 6), LOST, vote(9, 1)], 0, "key")
    assert (count.totals, count.best, count.counted, count.votes) == ((21, 10), 0, 3, 4)
    assert count.agreement == pytest.approx(2 / 3)
    assert (count.faults, count.unscorable) == (Counter(no_scores=1), 0.25)


def test_votes_that_cannot_be_read_give_no_totals():
    count = count_votes([LOST, LOST], 0, "key")
    assert (count.totals, count.best, count.agreement, count.unscorable) == (None, None, None, 1.0)


def test_ties_are_broken_by_the_seed_and_favour_no_place():
    best = [count_votes([vote(5, 5, 2)], 0, f"{key}").best for key in range(400)]
    assert set(best) == {0, 1} and 150 < best.count(0) < 250
    assert best == [count_votes([vote(5, 5, 2)], 0, f"{key}").best for key in range(400)]
    assert count_votes([vote(5, 5, 2)], 0, "0").tied and not count_votes([vote(5, 4, 2)], 0, "0").tied


def test_the_meta_rm_counts_the_half_it_trusts_most():
    votes = [vote(1, 9), vote(8, 2), vote(2, 9), vote(9, 3)]
    assert count_votes(votes, 0, "key").best == 1
    count = count_votes(votes, 0, "key", trust=[0.1, 0.9, 0.2, 0.8])
    assert (count.totals, count.best, count.counted) == ((17, 5), 0, 2)


def test_trust_in_votes_that_cannot_be_read_counts_nothing():
    count = count_votes([LOST, vote(3, 4), vote(9, 1)], 0, "key", trust=[1.0, 0.9, 0.1], keep=1)
    assert count.totals == (3, 4)
    assert count_votes([LOST, vote(3, 4)], 0, "key", trust=[1.0, 0.0]).totals == (3, 4)


def test_wrong_numbers_of_votes_are_refused():
    with pytest.raises(ValueError, match="no votes"):
        count_votes([], 0, "key")
    with pytest.raises(ValueError, match="1 numbers of trust for 2 votes"):
        count_votes([vote(1, 2), vote(1, 2)], 0, "key", trust=[0.5])


def test_voting_helps_a_judge_that_is_right_more_often_than_not():
    """Independent votes that are right in 60 of 100: the sum of 16 is right far more often."""
    rng = random.Random(0)
    noisy = lambda: vote(7, 4) if rng.random() < 0.6 else vote(4, 7)  # noqa: E731
    one = sum(count_votes([noisy()], 0, f"{i}").best == 0 for i in range(1000)) / 1000
    many = sum(count_votes([noisy() for _ in range(16)], 0, f"{i}").best == 0 for i in range(1000)) / 1000
    assert one < 0.65 and many > 0.72


@given(votes=st.integers(1, 32), data=st.data())
def test_totals_scale_to_0_and_1(votes, data):
    total = data.draw(st.integers(votes, 10 * votes))
    assert 0 <= scaled(total, votes) <= 1
    assert (scaled(votes, votes), scaled(10 * votes, votes)) == (0.0, 1.0)


def test_votes_are_cast_on_every_item_in_shuffled_orders():
    items = [
        RankedResponses(id="one", prompt="?", responses=("aaaa", "b", "cc"), truth=(1.0, 0.0, 0.5)),
        RankedResponses(id="two", prompt="??", responses=("d", "eeeeee"), truth=(0.0, 1.0)),
    ]
    judge = ByLength()
    votes = cast_votes(items, judge, 8, "terse", seed=3)
    assert [len(ballots) for ballots in votes] == [8, 8] and len({vote.order for vote in votes[0]}) > 2
    assert [count_votes(b, 3, i.id).totals for i, b in zip(items, votes, strict=True)] == [(32, 8, 16), (8, 48)]
    assert judge.asked[0] == ballot(items[0], votes[0][0].order, "terse")[0]["content"]
    (lost,) = cast_votes(items[:1], NoRoom(), 1, "full", seed=3)[0]
    assert (lost.scores, lost.fault) == (None, "no_room")
