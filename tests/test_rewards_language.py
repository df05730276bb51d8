"""Shares of the target language, against counts made by hand; repetition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import Problem
from rewards import language as language_module
from rewards.language import LanguageConsistency, LanguageOptions, count_words_by_script, language_consistency
from rewards.repetition import repetition_ratio
from rewards.reward import Verdict


def problem(language: str, **metadata) -> Problem:
    return Problem(
        id="p", messages=(), ground_truth="1", checker="math", domain="d", language=language, metadata=metadata
    )


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("First add three and eight.", {"latin": 5}),
        ("先计算括号", {"han": 3}),  # five characters
        ("先算，再减。", {"han": 2}),  # two runs of two
        ("先 add 再", {"han": 2, "latin": 1}),
        ("let x = 3, so x + y = 11", {"latin": 2}),  # let, so
        ("So 3 + 8 = 11", {"latin": 1}),
        (r"So $x = \frac{a}{b}$ and \sqrt{x}", {"latin": 2}),
        (r"计算 \[ \text{area} = 3 \] 得到", {"han": 2}),
        ("run `foo bar` now", {"latin": 2}),
        ("```\nx = foo(bar)\n``` done", {"latin": 1}),
        ("$so we hide English text here$ 好的", {"latin": 6, "han": 1}),
        ("```I think that this is prose``` 好的", {"latin": 5, "han": 1}),
        ("ひらがな と 漢字", {"kana": 4}),
        ("これは漢字です。这是汉字。", {"kana": 4, "han": 2}),
        ("สวัสดีครับ hello", {"thai": 3, "latin": 1}),
        ("مرحبا नमस्ते γειά שלום", {"arabic": 1, "devanagari": 1, "greek": 1, "hebrew": 1}),
        ("안녕 привет", {"hangul": 1, "cyrillic": 1}),
        ("3 + 8 = 11", {}),
        ("", {}),
    ],
)
def test_words_are_counted_by_the_documented_rules(text, counts):
    assert count_words_by_script(text) == counts


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("First add three", "en", 1.0),
        ("First add three", "zh", 0.0),
        ("先算括号 then add 三个数", "zh", 4 / 6),  # 2 + 2 of 2 + 2 + 2
        ("先算括号 then add 三个数", "en", 2 / 6),
        ("漢字 と", "ja", 1.0),
        ("3 + 8 = 11", "en", None),
    ],
)
def test_share_of_the_target_language(text, language, share):
    assert language_consistency(text, language) == (None if share is None else pytest.approx(share))


ENGLISH = "First we add the two numbers, and then we divide the result by three. So it is the mean of all of them."
FRENCH = "D'abord on additionne les deux nombres, puis on divise le résultat par trois. C'est donc la moyenne de tous."
GERMAN = (
    "Zuerst addieren wir die beiden Zahlen, und dann teilen wir das Ergebnis durch drei. Das ist also der Mittelwert."
)
SPANISH = (
    "Primero sumamos los dos números y luego dividimos el resultado por tres. Entonces es la media de todos ellos."
)
ITALIAN = (
    "Prima sommiamo i due numeri, poi dividiamo il risultato per tre. Quindi questa è la media di tutti gli altri."
)
PORTUGUESE = "Primeiro somamos os dois números, depois dividimos o resultado por três. Então é a média de todos eles."
LATIN_TEXTS = {"en": ENGLISH, "fr": FRENCH, "de": GERMAN, "es": SPANISH, "it": ITALIAN, "pt": PORTUGUESE}


@pytest.mark.parametrize("target", LATIN_TEXTS)
@pytest.mark.parametrize("spoken", LATIN_TEXTS)
def test_languages_of_latin_script_are_told_apart(target, spoken):
    share = language_consistency(" ".join([LATIN_TEXTS[spoken]] * 3), target)
    assert share == 1.0 if spoken == target else share is not None and share < 0.1


def test_sentences_in_another_language_are_counted_as_such():
    mixed = " ".join([ENGLISH, FRENCH] * 3)
    assert language_consistency(mixed, "en") == pytest.approx(22 / (22 + 17), abs=0.05)
    assert language_consistency(f"{FRENCH * 3} x + y: 3 mod 7. {ENGLISH}", "fr") == pytest.approx(51 / 75, abs=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "The die is rolled. Die 1: 6. Die 2: 5. Die 3: 1. Die 4: 6. Die 5: 6. Die 6: 6. Die 7: 6. Die 8: 6. Die 9: 6.",
        "Plus 3, per 4, sin 5, tan 6. " * 10,
        f"As Descartes said: 'je pense, donc je suis'. {ENGLISH}",
        "The sets El, La, Los, Las, Der, Das, Le, Un and Une are named so.",
    ],
)
def test_names_quotations_and_mathematics_are_no_other_language(text):
    assert language_consistency(text, "en") == 1.0


def test_names_belong_to_no_language():
    assert language_consistency("小明 gives Alice 苹果", "zh") == pytest.approx(2 / 4)
    assert language_consistency("Alice 有苹果", "zh", names=["Alice"]) == 1.0
    assert language_consistency("Malice 有苹果", "zh", names=["Alice"]) == pytest.approx(2 / 3)


def test_unknown_language_is_refused():
    with pytest.raises(ValueError, match="xx"):
        language_consistency("word", "xx")
    with pytest.raises(ValueError, match="xx"):
        LanguageConsistency(LanguageOptions(language="xx"))


def test_only_the_reasoning_is_read():
    reward = LanguageConsistency()
    assert reward(problem("zh"), "<think>先算括号</think>The answer is 3").value == 1.0
    assert reward(problem("en"), "<think>先算括号</think>The answer is 3").value == 0.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "no tags at all",
        "<think></think>ok",
        "<think>never closed",
        "<think>...</think>x",
        "<think>3+8=11</think>ok",
    ],
)
def test_writing_nothing_is_never_paid(completion):
    score = LanguageConsistency()(problem("en"), completion)
    assert (score.verdict, score.value) == (Verdict.FAIL, 0.0)


def test_wordless_value_is_for_formulas_only():
    reward = LanguageConsistency(LanguageOptions(wordless_value=1.0))
    assert reward(problem("en"), "<think>3+8=11</think>ok").value == 1.0
    assert reward(problem("en"), "<think>...</think>ok").value == 0.0


def test_problem_with_unknown_language_is_an_error():
    assert LanguageConsistency()(problem("xx"), "<think>words here</think>").verdict is Verdict.ERROR


def test_names_of_the_problem_are_left_out():
    completion = "<think>Alice 有苹果</think>1"
    assert LanguageConsistency()(problem("zh", names=["Alice"]), completion).value == 1.0
    assert LanguageConsistency()(problem("zh"), completion).value == pytest.approx(2 / 3)


@given(st.text(max_size=200))
def test_shares_of_arbitrary_text_are_shares(text):
    shares = [language_consistency(text, language) for language in ("en", "zh")]
    assert all(share is None or 0 <= share <= 1 for share in shares)
    assert None in shares or sum(share or 0 for share in shares) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("text", "n", "ratio"),
    [
        ("a b c d", 2, 0.0),
        ("a b a b a b", 2, 3 / 5),  # ab ba ab ba ab
        ("A b, a B.", 2, 1 / 3),
        ("好好好好", 2, 2 / 3),
        ("one two", 4, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition_counts_repeated_ngrams(text, n, ratio):
    assert repetition_ratio(text, n) == pytest.approx(ratio)


def test_foreign_reasoning_is_not_paid():
    for text in (FRENCH, GERMAN, SPANISH, ITALIAN, PORTUGUESE):
        assert (LanguageConsistency()(problem("en"), f"<think>{text * 2}</think>4").value or 0.0) < 0.1


@pytest.mark.parametrize("start", ["\\(", "\\[", "$$ ", "```", "\\begin{align}", "$" + "a" * 30 + " "])
def test_spans_that_never_end_are_read_in_linear_time(start):
    text = start * 200_000 + "\n some words"  # quadratic reading would take minutes
    assert language_consistency(text, "en") == 1.0


def test_long_words_in_a_formula_are_read_in_linear_time():
    assert language_consistency("$" + "a" * 400_000 + "$ 两个词 two words", "en") == 0.5


MIXED = st.lists(
    st.sampled_from(["so we add", "der die das", "x1 $a+b$", "der", ". ", "\\frac", "\n", "è", "42"]), max_size=40
)


class _MeetsEverything:
    def isdisjoint(self, words):
        return False


@given(MIXED, st.sampled_from(["en", "de", "it"]))
def test_text_without_foreign_function_words_is_not_looked_at_twice(pieces, language):
    """The short cut for plain text says what counting says."""
    text = " ".join(pieces)
    short = language_consistency(text, language)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_module, "_FOREIGN", dict.fromkeys(language_module._FOREIGN, _MeetsEverything()))
        assert language_consistency(text, language) == short
