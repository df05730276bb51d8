"""Inequalities, unions and systems: one set of numbers in many notations."""

import pytest

from rewards.grader_process import GraderPool
from rewards.math_answer import grade_math
from rewards.reward import Verdict

EQUAL = [
    ("0<x<1", "1>x>0"),
    ("0<x<1", r"x>0 \text{ and } x<1"),
    ("0<x<1", "x<1 and x>0"),
    ("0<x<1", "0<x and x<1"),
    (r"x>0 \text{ and } x<1", "0<x<1"),
    (r"x>0 \text{ and } x<1", "(0,1)"),
    ("(0,1)", r"x>0 \text{ and } x<1"),
    (r"0 \leq x < 1", r"x \geq 0 \land x < 1"),
    ("(0,1)", "1>x>0"),
    ("a>b>c", "c<b<a"),
    ("c<b<a", "a>b>c"),
    (r"(-\infty,-2)\cup(2,\infty)", r"x<-2 \text{ or } x>2"),
    (r"x<-2 \text{ or } x>2", r"(-\infty,-2)\cup(2,\infty)"),
    (r"x<-2 \text{ or } x>2", r"x>2 \text{ or } x<-2"),
    (r"x<-2 \text{ or } x>2", "-2>x or 2<x"),
    (r"x<-2, x>2", r"x<-2 \text{ or } x>2"),
    (r"x<-\sqrt{2} \text{ or } x>\sqrt{2}", r"(-\infty,-\sqrt2)\cup(\sqrt2,\infty)"),
    (r"(-\infty,-2]\cup(1,3)", r"x \leq -2 \text{ or } 1<x<3"),
    (r"x \leq -2 \text{ or } 1<x<3", r"(-\infty,-2]\cup(1,3)"),
    ("(1,2)", "(x,y)=(1,2)"),
    ("(1,2,3)", "(x,y,z)=(1,2,3)"),
    ("(x,y)=(1,2)", "(1,2)"),
    ("(x,y)=(1,2)", "x=1, y=2"),
    ("(x,y)=(1,2)", "y=2, x=1"),
    ("x=1, y=2", "(x,y)=(1,2)"),
    ("(5,2),(7,2)", "(p,q)=(5,2),(7,2)"),
    ("(p,q)=(5,2),(7,2)", "(7,2),(5,2)"),
    ("(2,3)", r"\begin{cases}x=2\\y=3\end{cases}"),
    (r"\begin{cases}x=2\\y=3\end{cases}", "(2,3)"),
    (r"\begin{cases}x=2\\y=3\end{cases}", "x=2, y=3"),
]

DIFFERENT = [
    ("0<x<1", "1<x<0"),
    ("0<x<1", "0>x>1"),
    ("0<x<1", r"x>0 \text{ or } x<1"),
    ("0<x<1", r"x>0 \text{ and } x \leq 1"),
    ("0<x<1", r"y>0 \text{ and } y<1"),
    (r"x>0 \text{ and } x<1", r"x>0"),
    ("a>b>c", "a<b<c"),
    ("a>b>c", "a>c>b"),
    (r"(-\infty,-2)\cup(2,\infty)", r"x<-2 \text{ and } x>2"),
    (r"(-\infty,-2)\cup(2,\infty)", "x<-2"),
    (r"(-\infty,-2)\cup(2,\infty)", r"x \leq -2 \text{ or } x>2"),
    (r"x<-2 \text{ or } x>2", r"x<-2 \text{ and } x>2"),
    (r"x<-2 \text{ or } x>2", r"y<-2 \text{ or } y>2"),
    (r"x<-2 \text{ or } x>2", "(-2,2)"),
    (r"x<-2 \text{ or } x>2", r"x<-2 \text{ or } x>3"),
    ("2", r"x>1 \text{ or } x=2"),
    ("(1,2)", "(x,y)=(2,1)"),
    ("(1,2)", "(x,y)=(1,2),(3,4)"),
    ("(x,y)=(1,2)", "(y,x)=(1,2)"),
    ("(5,2),(7,2)", "(p,q)=(5,2)"),
    ("(2,3)", r"\begin{cases}x=3\\y=2\end{cases}"),
    ("2", r"\begin{cases}x=2\\y=3\end{cases}"),
]


@pytest.fixture(scope="module")
def pool():
    with GraderPool(deadline_s=10.0) as pool:
        yield pool


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(pool, gold, answer):
    assert grade_math(gold, answer, pool).verdict is Verdict.PASS


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(pool, gold, answer):
    assert grade_math(gold, answer, pool).verdict is Verdict.FAIL
