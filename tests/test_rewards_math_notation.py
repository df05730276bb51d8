"""Notations that are easily taken for something else: letters for units, decimals for fractions, clocks for ratios."""

import pytest

from rewards.grader_process import GraderPool
from rewards.math_answer import grade_math
from rewards.reward import Verdict

EQUAL = {
    "products of letters": [
        ("2abc", "2cab"),
        ("2abc", r"2a \cdot b \cdot c"),
        ("abc", r"a\cdot b\cdot c"),
        ("xyz", "x y z"),
        (r"\frac12 abc", r"\frac{abc}{2}"),
        ("2mg", "2gm"),
        ("2mv", "2 v m"),
        (r"2xyz\text{ cm}", r"2zyx\text{ cm}"),
        (r"2xyz\text{ cm}", "2xyz"),
    ],
    "units": [
        ("2mg", r"2\text{ mg}"),
        ("12cm", "12 cm"),
        ("12", "12cm"),
        ("12 cm", "12"),
        (r"36\text{ m}", "36m"),
        ("36m", r"36\text{ m}"),
        (r"36 \frac{m}{s}", "36 m/s"),
        ("36 m/s", r"36\frac{\text{m}}{\text{s}}"),
        (r"36\text{ m/s}", r"36 \frac{m}{s}"),
        (r"12\text{ blue widgets}", "12 blue widgets"),
        (r"12\text{ blue widgets}", "12"),
        ("12 red marbles", "12"),
        (r"5\text{ N m}", "5 newton meters"),
    ],
    "money": [
        (r"\$5", "5"),
        ("5", r"\$5"),
        (r"\$5", r"5\text{ dollars}"),
        (r"5\text{ dollars}", r"\$5.00"),
        (r"\$5", "$5"),
        (r"\$5", r"$\$5$"),
        (r"\$32,348", r"\$32,\!348"),
        (r"\$3,000,000", r"\$3 \text{ million}"),
        ("3000000", r"\$3\text{ million dollars}"),
        ("€5", r"5\text{ euros}"),
        ("€5", "5"),
        ("50¢", "50"),
        (r"\$5", r"\$5\text{ dollars}"),
        (r"\$5, \$6", "6, 5"),
        (r"-\$5", "-5"),
        (r"\$\frac{1}{2}", r"\$0.50"),
        (r"\$15\text{ per hour}", r"15\text{ dollars per hour}"),
        (r"5\text{ pounds}", "£5"),
    ],
    "decimals for numbers no decimal can write": [
        ("13/6", "2.1666666666666665"),
        ("8/21", "0.38095238095238093"),
        (r"\sqrt7", "2.6457513110645907"),
        (r"\frac{1}{13983816}", "0.0000000715112"),
        (r"(\frac56)^{100}", "0.0000000120746"),
        ("1/6", "0.166667"),
        ("2/3", "0.666666"),
        ("0.333333", "1/3"),
    ],
    "degrees": [
        ("1/2", r"\sin{30^\circ}"),
        ("1/2", r"\sin 30^{\circ}"),
        ("45", r"\frac{90^\circ}{2}"),
        (r"\frac{\sqrt{3}}{2}", r"\cos(30^{ \circ })"),
        ("45", r"{45^\circ}"),
    ],
    "delimiters and spacing": [
        ("C", r"\(C\)"),
        ("(3,5)", r"\(3, 5\)"),
        ("3, 5", r"\(3, 5\)"),
        (r"15\text{ cm}", r"\(15\text{ cm}\)"),
        (r"\{1,2\}", r"\(\{1,2\}\)"),
        ("58500", r"\(58,500\)"),
        ("58500", r"\[58,500\]"),
        ("42", "42\\ "),
        ("42", "42\\"),
        ("42", r"\rm{42}"),
        ("42", r"{\rm 42}"),
        ("42", r"\begin{aligned}42\end{aligned}"),
        ("42", r"\begin{align*}x&=42\end{align*}"),
        (r"\mathbf{j}", r"\mathbf j"),
        (r"\vec{b}", r"\vec b"),
        (r"\begin{pmatrix}5\\6\end{pmatrix}", r"\begin{pmatrix}5\\[4pt]6\end{pmatrix}"),
        (r"\begin{pmatrix}5\\[4pt]6\end{pmatrix}", r"\begin{pmatrix}5\\6\end{pmatrix}"),
        ("-2", r"\sqrt[3]{-8}"),
        (r"\sqrt[3]{-8}", "-2"),
    ],
    "numerals, choices": [
        ("101_2", "(101)_2"),
        ("101_2", "101_{(2)}"),
        ("101_{(2)}", "101_2"),
        (r"\textbf{(B)}\ 12", "B"),
        (r"\textbf{(B)}\ 12", "12"),
        (r"\textbf{(B)}\ 12", r"\text{(B) } 12"),
        ("C", "C. a triangle"),
        ("C", "C) 13 or more"),
        ("C", "(C) $x = a + b$"),
        ("C", "C. not enough information"),
        ("C", "C) Cannot be determined"),
        ("N", "N"),
        ("No", "no"),
        ("42", r"42 (\text{mod } 100)"),
        (r"\sin\theta", "sin(θ)"),
    ],
    "no formulas": [
        ("12:00", "12:00"),
        ("12:00", "12:00 pm"),
        ("12:00", r"12{:}00"),
        ("2{:}30", "2:30"),
        ("6:00 PM", "6:00 pm"),
        (r"6:00\text{ p.m.}", "6:00 PM"),
        (r"A \cup B", r"A\cup B"),
        ("P(A|B)", r"P(A \mid B)"),
        (r"AB \parallel CD", r"AB\parallel CD"),
        (r"x\to\infty", r"x \to \infty"),
        (r"x\to\infty", r"x \rightarrow \infty"),
        (r"x \equiv 3 \pmod 7", r"x \equiv 3 \pmod{7}"),
    ],
}

DIFFERENT = {
    "products of letters": [
        ("2abc", "2"),
        ("3xyz", "3"),
        ("3 xyz", "3"),
        (r"\frac12 abc", "0.5"),
        (r"\frac12 mg", "0.5"),
        ("2mg", "2"),
        ("2mv", "2"),
        ("5mn", "5"),
        ("2cm", "2"),
        ("36m", "36"),
        ("2 m", "2"),
        (r"2xyz\text{ cm}", "2"),
        (r"2xyz\text{ cm}", r"2\text{ cm}"),
        ("2", "2abc"),
        ("2", "2mv"),
        ("36", "36x"),
        ("listen", "s i l e n t h"),
    ],
    "units": [
        ("2mg", r"2\text{ g}"),
        (r"36\text{ m}", "36s"),
        (r"36 \frac{m}{s}", "36 s/m"),
        (r"36 \frac{m}{s}", "36"),
        ("3", r"3\text{ women men}"),
        ("3", r"3\text{ am pm}"),
        ("3", r"3\text{ dollars cents}"),
        ("3", r"3\text{ bananas}"),
    ],
    "money": [
        (r"\$5", r"5\text{ cents}"),
        (r"50\text{ cents}", r"\$50"),
        ("€5", r"\$5"),
        (r"\$5", "€5"),
        (r"\$5", r"5\text{ apples}"),
        (r"\$5", r"\$6"),
        (r"\$5, \$6", r"\$5"),
    ],
    "decimals": [
        (r"\frac{1}{13983816}", "0.000000"),
        (r"\frac{1}{13983816}", "0.000001"),
        (r"\frac{1}{13983816}", "0.00000007"),
        (r"(\frac56)^{100}", "0.000000"),
        (r"(\frac56)^{100}", "0.00000001"),
        (r"\frac{\pi}{10^7}", "0.000000"),
        (r"\frac{\pi}{10^7}", "0.0000003"),
        ("0.000000", r"\frac{1}{13983816}"),
        (r"\sqrt7", "2.6457513110643"),
        ("13/6", "2.1666666666664"),
        ("13/6", "2.166665"),
        ("1/3", r"\frac13\approx 0.4"),
        ("1/3", r"\frac13\approx 0.32"),
        (r"\sqrt2", r"\sqrt2\approx 1.5"),
    ],
    "degrees": [("1/2", r"\sin{60^\circ}"), ("45", r"\frac{90^\circ}{3}")],
    "numerals, choices": [
        ("101_2", "(101)_3"),
        (r"\textbf{(B)}\ 12", "C"),
        (r"\textbf{(B)}\ 12", "13"),
        (r"\textbf{(B)}\ 12", r"\textbf{(C)}\ 12"),
        ("C", "C) or (d)"),
        ("C", "C. or d, I cannot tell"),
        ("C", "C: 12 or (a) 13"),
        ("C", "C) (b)"),
        ("C", "C. is wrong"),
        ("C", "C. is not right"),
        ("C", "C. or a, maybe"),
        ("N", "n"),
        ("2N", "2n"),
        ("2I", "2i"),
        ("no", "on"),
        (r"\pi(R^2-r^2)", "0"),
        ("R+r", "2r"),
        ("2E", "2e"),
        ("42", r"42 \mod 5"),
        ("42", r"42 \bmod 5"),
        ("1,2,3", r"\{1\},\{2\},\{3\}"),
        (r"\{1\},\{2\}", "1, 2"),
    ],
    "no formulas": [
        ("12:00", "7"),
        ("12:00", "12:30"),
        ("6:00 PM", "6:00 am"),
        ("6:00 PM", "7"),
        ("2{:}30", "23"),
        ("2{:}30", "2:31"),
        (r"A \cup B", "7"),
        (r"A \cup B", r"A \cap B"),
        ("P(A|B)", "7"),
        ("P(A|B)", "P(B|A)"),
        (r"AB \parallel CD", "7"),
        (r"AB \parallel CD", r"\frac{"),
        (r"x\to\infty", "7"),
        (r"x\to\infty", r"x \to 0"),
        (r"x \equiv 3 \pmod 7", "7"),
        (r"x \equiv 3 \pmod 7", r"x \equiv 4 \pmod 7"),
    ],
}


@pytest.fixture(scope="module")
def pool():
    with GraderPool(deadline_s=10.0) as pool:
        yield pool


def flatten(table: dict[str, list[tuple[str, str]]]) -> list:
    return [
        pytest.param(*pair, id=f"{kind}-{number}") for kind, pairs in table.items() for number, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize(("gold", "answer"), flatten(EQUAL))
def test_equal(pool, gold, answer):
    assert grade_math(gold, answer, pool).verdict is Verdict.PASS


@pytest.mark.parametrize(("gold", "answer"), flatten(DIFFERENT))
def test_different(pool, gold, answer):
    assert grade_math(gold, answer, pool).verdict is Verdict.FAIL


BANANAS = "Anna has 7 bananas and buys 3 more yellow bananas. How many bananas are there? Write $x$ kiwis."
SHARE = "Of 50 pupils, 30 sing. What percentage of the pupils sing?"


@pytest.mark.parametrize(
    ("question", "gold", "answer", "verdict"),
    [
        (BANANAS, "10", r"10\text{ bananas}", Verdict.PASS),
        (BANANAS, "10", "10 yellow bananas", Verdict.PASS),
        (BANANAS, "10", "10bananas", Verdict.FAIL),
        (BANANAS, "10", r"11\text{ bananas}", Verdict.FAIL),
        (BANANAS, "10", r"10\text{ melons}", Verdict.FAIL),
        (BANANAS, "10", r"10\text{ more bananas}", Verdict.FAIL),
        (BANANAS, r"10\text{ bananas}", "10", Verdict.PASS),
        (BANANAS, r"10\text{ apples}", r"10\text{ bananas}", Verdict.FAIL),
        (SHARE, "60", r"60\%", Verdict.PASS),
        (SHARE, "60", "60 percent", Verdict.PASS),
        (SHARE, "60", r"61\%", Verdict.FAIL),
        (SHARE, "0.6", r"60\%", Verdict.PASS),
        (SHARE, "0.6", r"0.6\%", Verdict.FAIL),
        ("20 percent of 300 pupils sing. How many pupils sing?", "60", r"60\%", Verdict.FAIL),
        ("What is 20 percent of 300?", "60", r"60\%", Verdict.FAIL),
        ("By what percent did the price rise?", "60", r"60\%", Verdict.PASS),
    ],
)
def test_the_question_says_what_is_counted(pool, question, gold, answer, verdict):
    assert grade_math(gold, answer, pool, question=question).verdict is verdict
