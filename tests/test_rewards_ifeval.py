"""IFEval: every instruction on responses that follow it and that do not, as the public checker judges them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config import ProblemSource
from data.ifeval import INSTRUCTIONS, LANGUAGES, read_instructions
from data.problems import Problem
from data.schemas import SourceError
from data.sources import read_problems
from rewards.accuracy import Accuracy
from rewards.ifeval import CHECKS, Tally, follows, loose_variants, tally_completion
from rewards.ifeval_text import count_capital_words, count_sentences, count_words
from rewards.language_id import is_written_in
from rewards.reward import Verdict

AT_LEAST, LESS_THAN = "at least", "less than"
# id, arguments, a response that follows it, and one that does not
CASES = [
    ("keywords:existence", {"keywords": ["river", "sea"]}, "Rivers run.\nSEA.", "A river."),
    ("keywords:existence", {"keywords": ["C++"]}, "We use c++ here.", "We use CC here."),
    ("keywords:existence", {"keywords": ["U.S"]}, "The u.s army", "The us army"),
    ("keywords:existence", {"keywords": ["a.c"]}, "abc", "ac"),
    ("keywords:frequency", {"keyword": " war", "frequency": 3, "relation": AT_LEAST}, "War, warm, war", "war war"),
    ("keywords:frequency", {"keyword": "war", "frequency": 2, "relation": LESS_THAN}, "war", "war, warm"),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "hit"]}, "Rocks and white", "I ROCK"),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": AT_LEAST}, "eE", "e"),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": LESS_THAN}, "#a", "#a #b"),
    ("language:response_language", {"language": "kn"}, "ನಾಯಿ ಓಡುತ್ತಿದೆ", "The dog runs in the park"),
    ("language:response_language", {"language": "hi"}, "कुत्ता पार्क में दौड़ रहा है", "कुत्रा बागेत धावत आहे आणि"),
    ("language:response_language", {"language": "de"}, "Der Hund ist nicht da", "The dog is not there"),
    ("language:response_language", {"language": "en"}, "12 + 3", "Ça va, et vous dans la rue?"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": AT_LEAST}, "Hi! Go there", "Hi, Mr. Lee."),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS_THAN}, "One\n\ntwo.", "One. Two."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\na\n***\nb\n***", "a\n\nb"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a***b", "a\n***\n***\nb"),
    ("length_constraints:number_words", {"num_words": 3, "relation": AT_LEAST}, "well-known man", "two words"),
    ("length_constraints:number_words", {"num_words": 100, "relation": LESS_THAN}, "a " * 99, "a " * 100),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
     "One.\n\n\"hello, two.", "One.\nHello\n\nTwo."),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
     "One.\n\nTwo's.\n\n", "One.\n\n\n\nTwo."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a [b] and []", "[a and\nb] [c]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. p. s. Write", "Bye. PS Write"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\np.p. s", "Bye.\nP.S. Write"),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, "Bye.\nnote: x", "Bye.\nnote x"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b", "* a\n** b **"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "\n\n  * a * b", "- a\n---"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe. Ask me", "My answer is Yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "**one** *two*", "*one* ** * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2},
     "Section 1\na\nSection2 b", "SECTION 1\nSection a"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:json_format", {}, "3", "[" * 100_000),
    ("detectable_format:title", {}, "So: <<a>> b", "<<\na>>"),
    ("detectable_format:title", {}, "<<<< x >>", "<< >>"),
    ("combination:two_responses", {}, "a\n******\nb\n******", "a\n******\n a"),
    ("combination:two_responses", {}, "******a******b", "a************b"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, " say HI. Hi!", "You ask: Say hi. Hi!"),
    ("startend:end_checker", {"end_phrase": "The end."}, '"This is the END."\n', "The end. Bye"),
    ("startend:quotation", {}, ' "All of it" ', '"Some" of it'),
    ("change_case:capital_word_frequency", {"capital_frequency": 3, "capital_relation": AT_LEAST}, "DON'T I", "I DO"),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": LESS_THAN}, "A-B nasa", "R&D"),
    ("change_case:english_capital", {}, "THIS IS THE END, 1!", "This IS THE END"),
    ("change_case:english_capital", {}, "OK!", "DER HUND IST NICHT DA"),
    ("change_case:english_lowercase", {}, "this is the end", "this is the End"),
    ("change_case:english_lowercase", {}, "fine", "der hund ist nicht da"),
    ("punctuation:no_comma", {}, "一，二; three", "one, two"),
]  # fmt: skip


def row(*instructions, **changes) -> dict:
    names, arguments = [name for name, _ in instructions], [given for _, given in instructions]
    return {"key": 7, "prompt": "Do it.", "instruction_id_list": names, "kwargs": arguments} | changes


def problem_of(tmp_path, *instructions) -> Problem:
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row(*instructions)) + "\n")
    (problem,) = read_problems(ProblemSource(path=str(path)))
    return problem


def test_all_25_instructions_have_arguments_a_check_and_a_case():
    assert len(INSTRUCTIONS) == 25
    assert INSTRUCTIONS.keys() == CHECKS.keys() == {case[0] for case in CASES}


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(tmp_path, name, arguments, good, bad):
    problem = problem_of(tmp_path, (name, arguments))
    accuracy = Accuracy()
    passed = accuracy(problem, f"<think>\n{bad}\n</think>\n\n{good}")
    failed = accuracy(problem, f"<think>\n{good}\n</think>\n\n{bad}")
    assert (passed.verdict, passed.value) == (Verdict.PASS, 1.0)
    assert (failed.verdict, failed.value) == (Verdict.FAIL, 0.0) and name in failed.detail
    accuracy.close()


def test_all_instructions_must_be_followed_and_the_value_is_their_share(tmp_path):
    nulls = {"relation": None, "num_words": None, "keywords": None}  # as the hub's table has them
    words = {"relation": "at least", "num_words": 2.0, "keywords": None}  # and tables without whole numbers
    problem = problem_of(tmp_path, ("punctuation:no_comma", nulls), ("length_constraints:number_words", words))
    assert (problem.id, problem.checker, problem.domain, problem.language) == (
        *("ifeval-7", "ifeval", "instruction", "en"),
    )
    assert read_instructions(problem.ground_truth)[1]["num_words"] == 2
    accuracy = Accuracy()
    assert accuracy(problem, "Hello there").verdict is Verdict.PASS
    half = accuracy(problem, "Hello, there")
    assert (half.verdict, half.value) == (Verdict.FAIL, 0.5)
    for blank in ("", "<think>\nHello there\n</think>\n\n ", "<think>\nHello there"):
        assert accuracy(problem, blank).value == 0.0
    assert accuracy(problem, "Well, <answer>Hello there</answer>").verdict is Verdict.PASS
    accuracy.close()


def test_more_words_than_our_own_instructions_allow_are_welcome(tmp_path):
    problem = problem_of(tmp_path, ("keywords:existence", {"keywords": ["word"]}))
    accuracy = Accuracy()
    assert accuracy(problem, "Another word. " * 500).verdict is Verdict.PASS
    accuracy.close()


def test_loose_counts_forgive_opening_and_closing_lines_and_stars(tmp_path):
    problem = problem_of(tmp_path, ("startend:quotation", {}), ("punctuation:no_comma", {}))
    assert tally_completion(problem, '"Fine"') == Tally(2, 2, 2)
    assert tally_completion(problem, '<think>\n,\n</think>\n\nSure, here:\n"Fine"\nBye, now') == Tally(2, 0, 2)
    assert tally_completion(problem, '**"Fine"**') == Tally(2, 1, 2)
    assert tally_completion(problem, "") == Tally(2, 0, 0)
    assert list(loose_variants("*a*\nb\n*c*")) == [
        "*a*\nb\n*c*",
        "a\nb\nc",
        "b\n*c*",
        "b\nc",
        "*a*\nb",
        "a\nb",
        "b",
        "b",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instruction_id_list": ["keywords:rhyme"]}, "there is no instruction 'keywords:rhyme' among the 25"),
        ({"kwargs": [{"num_words": 3}]}, "punctuation:no_comma takes no arguments; got {'num_words': 3}"),
        ({"instruction_id_list": [["punctuation:no_comma"]]}, "there is no instruction"),
        ({"kwargs": []}, "must be lists of one length"),
        ({"kwargs": ["x"]}, "are no object"),
        ({"instruction_id_list": [], "kwargs": []}, "at least one of them"),
        ({"prompt": " "}, "the prompt is missing or empty"),
        *(
            ({"instruction_id_list": [name], "kwargs": [given]}, f"{name} takes")
            for name, given in (
                ("keywords:existence", {"keywords": []}),
                ("keywords:existence", {"keywords": "word"}),
                ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": AT_LEAST}),
                ("length_constraints:number_words", {"num_words": 3, "relation": None}),
                ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}),
                ("length_constraints:number_words", {"num_words": 2.5, "relation": AT_LEAST}),
                ("length_constraints:number_words", {"num_words": True, "relation": AT_LEAST}),
                ("language:response_language", {"language": "tlh"}),
            )
        ),
    ],
)
def test_a_row_that_nothing_could_check_is_named(tmp_path, changes, said):
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row(("punctuation:no_comma", {})) | changes) + "\n")
    with pytest.raises(SourceError, match=rf"ifeval\.jsonl line 1: .*{said}"):
        list(read_problems(ProblemSource(path=str(path), row_schema="ifeval")))


@pytest.mark.parametrize("truth", ["no json", "[]", "[" * 100_000, '{"instructions": [{"id": "keywords:rhyme"}]}'])
def test_instructions_that_cannot_be_used_are_an_error_and_no_wrong_answer(truth):
    problem = Problem(id="p", messages=(), ground_truth=truth, checker="ifeval", domain="instruction", language="en")
    accuracy = Accuracy()
    score = accuracy(problem, "Hello")
    assert score.verdict is Verdict.ERROR and "of problem p cannot be used" in score.detail
    assert tally_completion(problem, "Hello") is None
    accuracy.close()


@given(st.text(alphabet="*-[]<>\n \t.,!?'\"`{}1aAbé#PS/:&", max_size=80), st.sampled_from(CASES))
def test_no_response_breaks_a_check(text, case):
    assert follows({"id": case[0], **case[1]}, text) in (True, False)


HOSTILE = [
    *(
        "*",
        "**",
        "* ",
        "\n",
        " ",
        " \n",
        "-\n",
        "[",
        "[]",
        "<<",
        "<<>",
        "<<>>",
        ".",
        ". ",
        ".)",
        "!'",
        "a",
        "a'",
        "A.",
        "1",
    ),
    *(
        "***",
        "******\n",
        "Section",
        "Section ",
        "p.",
        "p. ",
        '"',
        "{",
        "```",
        "word",
        "é",
        "中",
        "\x1c",
        ",",
        "--",
        "'s",
    ),
]


@pytest.mark.parametrize("name", sorted(INSTRUCTIONS))
def test_hostile_responses_are_judged_without_delay(name):
    """A check that is quadratic would take minutes for these; all of them together take seconds."""
    instructions = [{"id": case[0], **case[1]} for case in CASES if case[0] == name]
    for piece in HOSTILE:
        for instruction in instructions:
            assert follows(instruction, piece * (100_000 // len(piece)) + "x") in (True, False)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", 0),
        ("no mark", 1),
        ("Dr. Lee left at 3.15 p.m. today. Why?", 2),
        ("J. R. R. Tolkien wrote it. I read it.", 2),
        ("In the U.S. army. He left the U.S. They stayed.", 3),
        ("1. go there. 2. Go here.", 3),
        ('"Stop!" he said. (Really?) Yes.', 4),
        ("Wait... what? No... Never.", 3),
        ("A title\n\nA sentence.", 1),
        ("One.Two. Three", 2),
    ],
)
def test_sentences(text, sentences):
    assert count_sentences(text) == sentences


def test_words_and_capital_words():
    assert count_words("Hyphenated-word has two_word counts, 3.5!") == 7
    assert count_capital_words("I'M A/B R&D, NASA's *BOLD* WELL-KNOWN GPT4 Ab, 42: YES,NO") == 11


def test_every_language_of_ifeval_is_known_and_a_language_is_told_from_its_neighbours():
    assert all(is_written_in("", language) for language in LANGUAGES)
    samples = {
        "en": "the dog runs in the park and she looks at it", "es": "El perro corre por el parque y la niña le mira",
        "pt": "Eu não gosto de comer pão com queijo todos os dias", "fr": "Le chien court dans le parc et la fille",
        "de": "Der Hund läuft durch den Park und das Kind", "it": "Il cane corre nel parco e la ragazza lo guarda",
        "pl": "Pies biegnie przez park, a dziewczyna patrzy na niego", "vi": "Tôi thích ăn bánh mì và phở",
        "sw": "Mbwa anakimbia katika bustani na msichana", "fi": "Koira juoksee puistossa ja tyttö katsoo, mutta ei",
        "ru": "Собака бежит по парку, и она её видит", "uk": "Собака біжить парком, а дівчинка дивиться на неї",
        "bg": "Кучето тича в парка и момичето го гледа с радост", "ar": "يجري الكلب في الحديقة والفتاة تنظر إلى هذا",
        "fa": "سگ در پارک می‌دود و دختر به آن نگاه می‌کند", "ur": "کتا پارک میں دوڑ رہا ہے اور لڑکی دیکھ رہی ہے",
        "hi": "कुत्ता पार्क में दौड़ रहा है और लड़की देख रही है", "mr": "कुत्रा बागेत धावत आहे आणि मुलगी पाहत आहे",
        "ne": "कुकुर पार्कमा दौडिरहेको छ र केटी हेर्छ", "bn": "কুকুরটি দৌড়াচ্ছে", "pa": "ਕੁੱਤਾ ਦੌੜ ਰਿਹਾ ਹੈ", "gu": "કૂતરો દોડે છે",
        "ta": "நாய் ஓடுகிறது", "te": "కుక్క పరిగెత్తుతోంది", "kn": "ನಾಯಿ ಓಡುತ್ತಿದೆ", "ml": "നായ ഓടുന്നു",
        "th": "สุนัขวิ่งในสวน", "ko": "개가 달리고 있다", "ja": "犬が公園を走っている", "he": "הכלב רץ בפארק",
    }  # fmt: skip
    assert samples.keys() == set(LANGUAGES)
    for language, text in samples.items():
        assert [other for other in LANGUAGES if is_written_in(text, other)] == [language]
    with pytest.raises(ValueError, match="not 'tlh'"):
        is_written_in("nuqneH", "tlh")
