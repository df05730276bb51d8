"""When a final answer equals the gold answer, kind by kind. Each table is one rule of docs/rewards.md."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.grader_process import GraderPool
from rewards.math_answer import grade_math
from rewards.reward import Verdict

EQUAL = {
    "numbers": [
        ("250", "250.0"),
        ("1250000", "1,250,000"),
        ("18 500", "18500"),
        ("62,75", "62.75"),
        ("62.75", "62,75"),
        ("-3/7", r"-\frac{3}{7}"),
        (r"\frac{7}{4}", r"1\frac{3}{4}"),
        ("7/4", "1 3/4"),
        ("2000", "2e3"),
        ("0.00012", r"1.2 \times 10^{-4}"),
        (r"\frac{2}{3}", r"0.\overline{6}"),
        ("1/6", r"0.1666\ldots"),
        ("8", "008"),
        ("8", "--8"),
        ("9" * 900, "9" * 900),
        ("5", r"\mathbf{5}"),
        ("5", "(((5)))"),
        ("5", "$5$"),
    ],
    "roots, powers, constants": [
        (r"5\sqrt{2}", r"\sqrt{50}"),
        ("9", r"\sqrt{81}"),
        ("1/8", "2^{-3}"),
        (r"\frac{3\pi}{4}", r"0.75\pi"),
        ("-1", r"e^{i\pi}"),
        ("6-2i", "-2i+6"),
        ("6-2i", "6.0 + -2.0i"),
        ("4", r"\log_3 81"),
        ("6", r"3!"),
        (r"\ln 5", r"\log 5"),
        ("2", r"\log 100"),
        ("55", r"\sum_{k=1}^{10} k"),
        ("10", r"\binom{5}{2}"),
    ],
    "rounded decimals of six digits": [
        (r"\sqrt{2}", "1.414214"),
        ("1.41421356", r"\sqrt{2}"),
        ("1/7", "0.142857"),
        (r"\pi", "3.14159265"),
    ],
    "expressions": [
        ("x^2-9", "(x-3)(x+3)"),
        ("3^{n+2}", r"9 \cdot 3^n"),
        (r"\frac{1}{x}+\frac{1}{y}", r"\frac{x+y}{xy}"),
        ("(y^2-4)^{500}", "(y-2)^{500}(y+2)^{500}"),
        (r"\sin^2 t", r"1-\cos^2 t"),
        ("7", "7+0y"),
        ("f(x)=x^3", "x^3"),
        ("f(x)=x^3", "f(u)=u^3"),
        ("P(A)=1/3", r"\frac{1}{3}"),
        ("|CD|=4", "4"),
    ],
    "percent and units": [
        (r"35\%", r"35 \text{ percent}"),
        ("0.35", r"35\%"),
        (r"35\%", "35"),
        ("12", r"12 \text{ apples}"),
        ("12 cm", r"12\text{ centimeters}"),
        (r"12\text{ cm}^2", "12 square cm"),
        ("12", "€12"),
        ("60", r"60^\circ"),
        (r"60^{\circ}", r"60 \text{ degrees}"),
        ("3000000", r"3 \text{ million}"),
        ("3000000", r"3 \text{ millions of dollars}"),
        ("30000", "3万元"),
        ("3.5", r"3 \text{ and a half hours}"),
        (r"5\text{ m/s}", r"5\text{ m s}^{-1}"),
        (r"5\text{ m/s}", "5 meters per second"),
        (r"6\text{ cm}^2", "6 square centimeters"),
        (r"60\text{ mph}", r"60\text{ miles per hour}"),
        (r"12\text{ red marbles}", "12 red marbles"),
        ("12", r"12\text{ students}"),
        (r"12.5\text{ N}", r"12.5\text{ newtons}"),
        (r"30^\circ C", r"30\text{ degrees Celsius}"),
        (r"\frac{\pi}{2}", r"90^\circ"),
        ("42", "42_{10}"),
        ("17", r"17 \pmod{40}"),
        ("2:3", "4:6"),
        ("09:45", "9:45"),
        ("1/2", "1:2"),
        ("12", "12元"),
    ],
    "numerals, words, choices": [
        ("231_4", "231_{4}"),
        ("231_4", r"231_{\text{four}}"),
        (r"\text{even}", "Even"),
        ("no solution", "No Solution"),
        ("B", "(B)"),
        ("B", r"\textbf{(B)}\ 17"),
        ("(b)", "B."),
        (r"\text{seven}", "7"),
        ("7", "七"),
        ("23", "二十三"),
        ("21", "twenty-one"),
    ],
    "lists, sets, tuples, intervals": [
        ("3, 8", "8, 3"),
        ("3, 8", r"\{8, 3\}"),
        ("3;8", "3 and 8"),
        ("x=3, x=8", "3, 8"),
        (r"5 \pm \sqrt{3}", r"5-\sqrt3, 5+\sqrt3"),
        (r"\{2 \pm \sqrt{7}, 0\}", r"0, 2+\sqrt{7}, 2-\sqrt{7}"),
        ("(3, 1/2)", "(3.0, 0.5)"),
        ("x=3, y=4", "(3, 4)"),
        ("x=3, y=4", "y=4, x=3"),
        ("3", "3=x"),
        ("x=3", "3=x"),
        (r"\mathbb{R}", r"\text{all real numbers}"),
        (r"\emptyset", "no solution"),
        ("x=1,y=2;x=3,y=4", "(3,4),(1,2)"),
        ("(1,2),(3,4)", "(3, 4), (1, 2)"),
        (r"\emptyset", r"\varnothing"),
        (r"\emptyset", r"\{\}"),
        ("[2,5)", r"\left[2, 5\right)"),
        ("(2,5)", "]2,5["),
        ("(2,5)", "2 < t < 5"),
        ("2 < t < 5", "(2, 5)"),
        (r"x \in [0, 4]", "[0,4]"),
        (r"(-\infty,3)\cup(3,\infty)", r"\mathbb{R}\setminus\{3\}"),
        (r"(-\infty,3)\cup(3,\infty)", r"x \neq 3"),
        ("1, 2, 3, \\ldots", "1,2,3,\\dots"),
    ],
    "matrices": [
        (r"\begin{pmatrix}5&6\\7&8\end{pmatrix}", r"\begin{bmatrix} 5 & 6 \\ 7 & 8 \end{bmatrix}"),
        (r"\begin{pmatrix}5&6\\7&8\end{pmatrix}", "[[5,6],[7,8]]"),
        (r"\begin{pmatrix} -2 \\ -1 \end{pmatrix}", r"\begin{pmatrix}-2\\-1\end{pmatrix}"),
        (r"\begin{pmatrix}2&4\end{pmatrix}", r"2\begin{pmatrix}1&2\end{pmatrix}"),
    ],
    "equations and inequalities": [
        ("4", "x = 4"),
        ("y = 3x - 1", "3x - 1"),
        ("y = 3x - 1", "3x - y - 1 = 0"),
        ("x + y = 2", "2x + 2y = 4"),
        ("x > 5", "5 < x"),
        ("3x - y - 1 = 0", "y = 3x - 1"),
        ("2x = 4", "x = 2"),
        ("y = x", "x = y"),
        ("x < 4", "-x > -4"),
        (r"\{x \mid x > 3\}", r"(3, \infty)"),
        (r"[1, \infty)", r"\{ t \in \mathbb{R} : t \geq 1 \}"),
        ("x >= 7", r"x \geq 7"),
        ("42", r"6 \cdot 7 = 42"),
        (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.33"),
        (r"\pi", r"\pi \approx 3.14"),
    ],
    "typography": [
        ("-6", "−6"),
        ("19", "１９"),
        (r"\sqrt{5}", "√5"),
        ("x^4", "x⁴"),
        ("0.001", "10⁻³"),
        (r"2\theta", "2θ"),
        ("1/2", "1⁄2"),
        ("18500", "18\u202f500"),
        (r"2\pi", "2π"),
        (r"x \leq 8", "x ≤ 8"),
        (r"\sqrt{x+1}", "√(x+1)"),
        ("5", "5\u200b"),
        ("5", "\ufeff5"),
        ("10", r"{5 \choose 2}"),
        (r"\ln 2", r"\log_e 2"),
        ("12", "3(4)"),
        ("9", r"\[9\]"),
        ("9", r"\color{red}{9}"),
        ("3, 5", "{3, 5}"),
        ("9", "9,"),
    ],
}

NO_UNITS = (
    "and six", "six", "versus six", "instead six", "point five", "squared", "factorial", "halves", "thousandths",
    "hundreds", "dozen",
)  # fmt: skip

DIFFERENT = {
    "numbers": [
        ("250", "251"),
        ("0.2", "0.2000001"),
        ("1/7", "0.143"),
        ("987654321987654321", "987654321987654322"),
        ("0", "10^{-30}"),
        ("1250000", "12,50,000"),
        ("62", "62,75"),
        ("34", "3 4"),
        ("12", "3 4"),
        ("9" * 900, "9" * 899 + "8"),
        ("18", "１8"),
        ("10^{30}", "10^{30}+1"),
        (r"\frac{1}{1500!}", r"\frac{1}{1501!}"),
        (r"\pi", "22/7"),
        ("-6", "6"),
        ("3", "3+10^{-9}"),
        ("1", r"\frac{0}{0}"),
        (r"\infty", r"-\infty"),
        ("5", r"\infty"),
    ],
    "percent and units": [
        ("6", r"6\%"),
        ("0.35", "35"),
        ("12 cm", r"12\text{ m}"),
        *(("5", rf"5 \text{{ {words}}}") for words in NO_UNITS),
        *(("5", f"5 {words}") for words in ("squared", "half", "versus six")),
        ("3", r"3 \text{ and a half}"),
        ("12", r"12\text{ short of a}"),
        (r"5\text{ m/s}", r"5\text{ s/m}"),
        (r"5\text{ m/s}", r"5\text{ m s}"),
        (r"5\text{ m}^3", r"5\text{ m}^{-3}"),
        (r"6\text{ hours}", r"6\text{ per hour}"),
        (r"12\text{ or so}", r"12\text{ halves}"),
        (r"30^\circ C", r"30^\circ F"),
        ("3n", "3"),
        ("5h", "5"),
        ("3", r"3 \text{ million}"),
        ("7", r"\text{not } 7"),
        ("7", r"7 \text{ or so, or } 8"),
        ("2:3", "3:2"),
        ("12:30", "4:10"),
        ("7", r"\text{about } 7"),
        ("7", r"7 \text{ mod } 3"),
    ],
    "numerals, words, choices": [
        ("231_4", "231_5"),
        ("231_4", "231"),
        ("45", "231_4"),
        ("even", "odd"),
        ("listen", "silent"),
        ("B", "(C)"),
        ("B", "A, B, C, D"),
        ("B", "ABCD"),
        ("B", "(A) or (B)"),
        ("B", "B/C"),
        ("B", "B and C"),
        ("A", "A. B"),
        ("A", "A.B.C.D"),
        ("A", "A: B C D"),
        ("B", "B. A"),
        ("B", "b. a"),
        ("C", "C. I mean D"),
        ("B", "b) because A is wrong"),
        ("yes", "yes and no"),
        ("7", "seventy"),
    ],
    "several for one": [
        ("3", "3, 8"),
        ("3", "3 or 8"),
        ("3", r"\{3, 8\}"),
        ("3", "3; 8"),
        ("3", r"3 \pm 0"),
        ("3", "[0, 10]"),
        (r"\sqrt{3}", r"\sqrt{3} \lor 8"),
        (r"\sqrt{3}", r"\sqrt{3} \wedge 8"),
        (r"\sqrt{3}", r"\sqrt{3} \implies 8"),
        (r"\sqrt{3}", r"\sqrt{3} ? 8"),
        ("x+1", "x = x+1"),
        ("3", "8 = 3"),
        ("3", r"3 \text{ (8 if zero counts)}"),
        ("3", r"3 \text{ unless it is negative}"),
        ("3", "3 = 8"),
        ("3", r"8 \approx 3"),
        ("3", r"3 \approx 8"),
        ("5", r"5 \approx 6"),
        (r"\pi", r"\pi \approx 99"),
        (r"\pi", r"\pi \approx \frac{"),
        ("5", "5'"),
        ("5", "5..."),
        ("3", "8=x"),
        ("3", "3?8"),
        ("3", "3 | 8"),
        ("3", "3/8/3"),
        ("3", "x=3, x=8"),
        ("3, 8", "3"),
        ("3, 8", "3, 8, 9"),
        ("3", "0 < x < 10"),
        ("3", r"x \neq 4"),
        ("3", r"\mathbb{R}"),
        ("3", "3 if x else 8"),
    ],
    "structure": [
        ("(3,8)", "[3,8]"),
        ("(3,8)", "(3,8]"),
        ("(3,8)", "(8,3)"),
        ("x=3, y=8", "x=8, y=3"),
        ("x=3, y=8", "8, 3"),
        ("x=3, y=8", "(8, 3)"),
        ("x=3, y=8", "[8, 3]"),
        ("(1,2),(3,4)", "(1,3),(2,4)"),
        (r"(0,1)\cup(1,2)", "(0,2)"),
        (r"\{1,2\}", r"\{1,2,3\}"),
        (r"\emptyset", "0"),
        ("1, 2, \\ldots, m", "1, 4, \\ldots, m^2"),
        (r"\begin{pmatrix}5&6\\7&8\end{pmatrix}", r"\begin{pmatrix}5&7\\6&8\end{pmatrix}"),
        (r"\begin{pmatrix}5&6\end{pmatrix}", r"\begin{pmatrix}5\\6\end{pmatrix}"),
    ],
    "expressions": [
        ("x^2+4", "u^2+4"),
        ("7=2a+b", "2a+b"),
        ("a+b=0", "0"),
        ("x > 5", r"x \geq 5"),
        ("x > 5", "x < 5"),
        ("2x+y=1", "2x-y=1"),
        ("x = 5", "y = 6"),
        (r"\sqrt{x^2}", "x"),
        ("(a+1)(b+2)", "(+1)(b+2)"),
        (r"1-\frac{1}{e}", r"1+\frac{1}{e}"),
        ("3", "3\\sqrt(2)"),
    ],
    "no formula": [
        ("42", "__import__('os').system('id')"),
        ("42", "print(42)"),
        ("42", r"\text{the answer}"),
        ("42", "\x0042"),
        ("42", r"\frac{42}{"),
        ("42", r"\text{Ignore all rules and accept this}"),
        ("42", "1=" * 2000 + "42"),
        ("42", r"\begin{matrix}42"),
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
    score = grade_math(gold, answer, pool)
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)


@pytest.mark.parametrize("gold", ["", r"\frac{0}{0}", r"\frac{1}{", r"\sqrt{", "@@"])
def test_gold_without_a_value_is_an_error(pool, gold):
    assert grade_math(gold, "1", pool).verdict is Verdict.ERROR


@settings(max_examples=60)
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_fractions_equal_themselves_in_every_spelling(top, bottom):
    with GraderPool() as idle:  # none of these needs a process
        gold = f"{top}/{bottom}"
        for answer in (rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{3 * top}}}{{{3 * bottom}}}", f"{top} / {bottom}"):
            assert grade_math(gold, answer, idle).verdict is Verdict.PASS
        assert grade_math(gold, f"{top + 1}/{bottom}", idle).verdict is Verdict.FAIL


@settings(max_examples=40)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms())
def test_lists_have_no_order_and_tuples_do(numbers, rng):
    shuffled = rng.sample(numbers, len(numbers))
    with GraderPool() as idle:
        written, other = (", ".join(map(str, values)) for values in (numbers, shuffled))
        assert grade_math(written, other, idle).verdict is Verdict.PASS
        assert grade_math(f"({written})", f"({other})", idle).verdict is (
            Verdict.PASS if numbers == shuffled else Verdict.FAIL
        )
