"""What stands around a box belongs to the answer, or leaves none."""

import pytest

from rewards.grader_process import GraderPool
from rewards.math_answer import extract_answer, grade_math


@pytest.fixture(scope="module")
def pool():
    with GraderPool(deadline_s=10.0) as pool:
        yield pool


def paid(gold: str, completion: str, pool: GraderPool) -> bool:
    answer = extract_answer(completion)
    return answer.text is not None and grade_math(gold, answer.text, pool).value == 1.0


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("5", r"- \boxed{5}"),
        ("5", r"−\boxed{5}"),
        ("5", r"-\,\boxed{5}"),
        ("5", r"-$\boxed{5}$"),
        ("5", "-\n\\boxed{5}"),
        ("5", "- \\\\ \\boxed{5}"),
        ("47", "$5 + $ $\\boxed{42}$"),
        ("5", r"$x = -\boxed{5}$"),
        ("5", r"-(\boxed{5})"),
        ("5", r"\frac{\boxed{5}}{2}"),
        ("5", r"\sqrt{\boxed{5}}"),
        ("5", r"\pm\boxed{5}"),
        ("5", r"|\boxed{5}|"),
        ("5", r"(\boxed{5})^2"),
        ("5", r"\boxed{5}^2"),
        ("5", r"$\boxed{5}!$"),
        ("5", r"\text{minus }\boxed{5}"),
        ("5", r"negative \boxed{5}"),
        ("5", r"The answer is not \boxed{5}"),
        ("42", r"2\boxed{42}"),
        ("42", r"2 \boxed{42}"),
        ("42", r"$x\boxed{42}$"),
        ("42", r"$x \boxed{42}$"),
        ("42", r"\boxed{42}x"),
        ("42", r"$\boxed{42} x$"),
        ("42", r"\boxed{42}/2"),
        ("42", r"\boxed{42}+1"),
        ("42", r"\boxed{42} + 1"),
        ("42", r"\boxed{42} - 1"),
        ("42", r"\boxed{42}.5"),
        ("42", r"\boxed{42}\pi"),
        ("42", r"\boxed{42} \cdot 2"),
        ("42", r"\boxed{42}_5"),
        ("42", r"\boxed{42}\%"),
        ("42", r"\boxed{42} \%"),
        ("42", r"$\boxed{42}\text{ or }43$"),
        ("42", r"\boxed{42}\text{ or }43"),
        ("42", r"\boxed{42}=43"),
        ("42", r"\phantom{\boxed{42}}"),
        ("42", r"\boxed{42}\boxed{}"),
        ("42", r"\boxed{42}\boxed{ }"),
        ("42", r"\boxed{41} or maybe \boxed{42}"),
        ("42", r"Either \boxed{41}; alternatively \boxed{42}"),
        ("42", r"either \boxed{41} or \boxed{42}"),
        ("42", r"\boxed{42}\neq 43"),
        ("42", r"<answer>-\boxed{42}</answer>"),
        ("42", r"<answer>\boxed{42}+1</answer>"),
        (r"42\text{ cm}", r"\boxed{42}\text{ m}"),
    ],
)
def test_part_of_a_formula_is_not_paid(pool, gold, completion):
    assert not paid(gold, f"<think>a</think>{completion}", pool)


@pytest.mark.parametrize(
    ("gold", "completion"),
    [
        ("42", r"$x=\boxed{42}$"),
        ("42", r"$x\approx \boxed{42}$"),
        ("42", r"$\boxed{42}$."),
        ("42", r"**\boxed{42}**"),
        ("42", r"**Answer:** \boxed{42}."),
        ("42", r"Answer - \boxed{42}"),
        ("42", r"The answer is \boxed{42} apples."),
        ("42", r"The answer is \boxed{42} - as was to be shown."),
        ("42", r"$\boxed{42}\text{ apples}$"),
        ("42", r"$\boxed{42}^\circ$"),
        ("42", r"$\boxed{42}\,\text{cm}^2$"),
        ("42", r"\[\boxed{42}\]"),
        ("42", r"\(\boxed{42}\)"),
        ("42", "$$\n\\boxed{42}\n$$"),
        ("42", r"$$\boxed{42}.$$"),
        ("42", "So the sum is 42\n\n\\boxed{42}"),
        ("42", "So the sum is 42\n\\boxed{42}"),
        ("42", r"\begin{align*} x &= \boxed{42} \end{align*}"),
        ("42", r"\begin{aligned} x &= 2 \\ y &= \boxed{42} \\ \end{aligned}"),
        ("42", r"(\boxed{42})"),
        ("42", "It costs $42.\n\\boxed{42}"),
        ("42", r"\boxed{42} – done"),
        ("42", r"$\boxed{42}\pmod{100}$"),
        ("42", r"\textbf{\boxed{42}}"),
        ("42", r"$\boldsymbol{\boxed{42}}$"),
        ("42", r"{\Large \boxed{42}}"),
        ("42", r"$\text{Area }\boxed{42}$"),
        ("42", r"$\text{Area} = \boxed{42} = 6 \cdot 7$"),
        ("42", r"$\boxed{42}\quad\blacksquare$"),
        ("42", r"$\therefore \boxed{42}$"),
        ("42", r"$x = 6 \cdot 7 \implies \boxed{42}$"),
        ("42", r"答案是\boxed{42}。"),
        ("42", r"I pay a \boxed{42}"),
        ("42", r"The sum is 6 + 36 = 42. \boxed{42}"),
        ("42", r"the cost is $40 + $2, so \boxed{42}"),
        ("42", r"<answer>\boxed{42}</answer>"),
        ("42", r"<center>\boxed{42}</center>"),
        ("42", "| result | \\boxed{42} |"),
        (r"42\%", r"\boxed{42}\%"),
        (r"42\%", r"$\boxed{42\%}$"),
        ("0.42", r"\boxed{42}\%"),
        (r"42\text{ cm}", r"\boxed{42}\text{ cm}"),
        ("(3,4)", r"$(x,y) = (\boxed{3},\boxed{4})$"),
        ("3, 4", r"$x=\boxed{3}$ and $y=\boxed{4}$"),
        ("42", r"The answer is \boxed{42}!"),
    ],
)
def test_what_changes_nothing_around_a_box_is_no_matter(pool, gold, completion):
    assert paid(gold, f"<think>a</think>{completion}", pool)


@pytest.mark.parametrize("piece", ["$", "-", "2", "{", "\\text{", "\\frac{", "(", "\\[", "\n", "$x$ "])
def test_hundred_thousand_characters_around_the_box_take_no_time(piece):
    extract_answer(piece * (100_000 // len(piece)) + "\n\n\\boxed{42}" + piece * (100_000 // len(piece)))
