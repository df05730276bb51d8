"""Verdicts of honest and of clever programs, by kind of test; every checker; languages of the table."""

import contextlib
import math
import sys
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.sandbox.checkers import Custom, Exact, Floats, Lines, Tokens, same_value
from rewards.sandbox.errors import SandboxError, SandboxUnavailable
from rewards.sandbox.jail import plain
from rewards.sandbox.judge import CallTest, StdioTest, UnitTest, judge
from rewards.sandbox.languages import LANGUAGES, find_language, tool_path
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox
from rewards.sandbox.result import Judgement, TestResult, Verdict
from tests.sandbox_attacks import ENDED_ITERATIONS, ITERATING_TESTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux only")

AVAILABLE = tuple(name for name, language in LANGUAGES.items() if not language.tool or tool_path(language))
LIMITS = Limits(cpu_s=2.0, wall_s=10.0, memory_mb=256)

PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def box():
    with Sandbox(workers=1, languages=AVAILABLE) as sandbox:
        yield sandbox


def verdict(box, source, *tests, language="python", **options) -> str:
    return judge(box, Program(language, source), tests, limits=LIMITS, **options).verdict.value


def test_every_test_gets_its_own_verdict(box):
    source = "n = int(input())\nif n == 3: raise ValueError\nprint(n * 2 if n != 2 else 0)"
    tests = [StdioTest(f"{n}\n", str(2 * n)) for n in (1, 2, 3, 4)]
    judgement = judge(box, Program("python", source), tests)
    assert [test.verdict.value for test in judgement.tests] == ["AC", "WA", "RE", "AC"]
    assert (judgement.passed, judgement.total, judgement.verdict) == (2, 4, Verdict.WA)
    assert judgement.value() == 0.0 and judgement.value(all_or_nothing=False) == 0.5
    stopped = judge(box, Program("python", source), tests, stop_on_first_failure=True)
    assert len(stopped.tests) == 2 and stopped.verdict is Verdict.WA


def test_an_internal_error_is_no_number():
    ok, broken = TestResult(verdict=Verdict.AC), TestResult(verdict=Verdict.IE)
    assert Judgement(tests=(ok, broken), total=2).value(all_or_nothing=False) is None
    assert Judgement(tests=(ok,), total=2).verdict is Verdict.IE, "a test that was not run proves nothing"


def test_a_program_without_tests_cannot_be_judged(box):
    with pytest.raises(ValueError, match="without tests"):
        judge(box, Program("python", ""), [])


@pytest.mark.parametrize(
    ("source", "expected", "right"),
    [
        ("def f(a, b=2): return [a, (b,), {'x': {a}}]", [1, [2], {"x": {1}}], True),
        ("def f(a, b=2): return a", True, False),
        ("def f(a, b=2): return 1.0", 1, True),
        ("def f(a, b=2): return '1'", 1, False),
        ("f = lambda a, b=2: 10 ** 30", 10**30, True),
    ],
)
def test_calls_are_compared_by_value(box, source, expected, right):
    assert verdict(box, source, CallTest("f", (1,), expected)) == ("AC" if right else "WA")


def test_methods_of_a_solution_object_are_called(box):
    source = "class Solution:\n    def __init__(self): self.k = 2\n    def double(self, x): return self.k * x"
    assert verdict(box, source, CallTest("Solution.double", (3,), 6)) == "AC"
    assert verdict(box, source, CallTest("Solution.double", (3,), 7)) == "WA"
    assert verdict(box, source, CallTest("Other.double", (3,), 6)) == "RE"


def test_results_in_containers_of_the_library_are_values(box):
    source = "import collections as c\nP = c.namedtuple('P', 'x y')\ndef f(x):\n    d = c.defaultdict(int)\n"
    source += "    d['a'] = 1\n    return [c.Counter('aab'), d, c.deque([1, 2]), P(1, 2), 10 ** 999]"
    assert verdict(box, source, CallTest("f", (0,), [{"a": 2, "b": 1}, {"a": 1}, [1, 2], [1, 2], 10**999])) == "AC"
    test = "import collections as c\nassert f(0) == [c.Counter('aab'), {'a': 1}, c.deque([1, 2]), (1, 2), 10 ** 999]"
    assert verdict(box, source, UnitTest(test)) == "AC"


def test_a_test_that_cannot_be_put_is_an_internal_error(box):
    assert verdict(box, "def f(x): return 1", CallTest("f", (10**1000,), 1)) == "IE"
    assert verdict(box, "def f(x): return 1", CallTest("f", (1,), object())) == "IE"
    assert verdict(box, "print(1)", StdioTest("\ud800", "1")) == "IE"
    assert verdict(box, "print(1)", StdioTest("", "\ud800")) == "IE"


def test_calls_take_keywords_and_tolerances(box):
    test = CallTest("f", (1,), 0.3, kwargs={"b": 0.1}, tolerance=1e-9)
    assert verdict(box, "def f(a, b): return a * b + 0.2", test) == "AC"
    assert verdict(box, "def f(a, b): return 0.31", test) == "WA"
    assert verdict(box, "def g(a): return 1", test) == "RE"
    assert verdict(box, "print('noise')\ndef f(a, b): print('noise'); return 0.3", test) == "AC"


ADD = "def add(a, b): return a + b"
UNIT_TESTS = {
    "asserts": "assert add(add(1, 0), 2) == 3\nassert add('a', 'b') == 'ab'",
    "a check function": "def check(candidate):\n    for n in range(5): assert candidate(n, n) == 2 * n",
    "test functions": "from solution import add\ndef test_sum(): assert add(1, 2) == 3",
    "unittest": "import unittest\nclass TestAdd(unittest.TestCase):\n"
    "    def test_sum(self): self.assertEqual(add(1, 2), 3)\n"
    "    def test_error(self):\n        with self.assertRaises(TypeError): add(1, 'x')",
}


@pytest.mark.parametrize("name", UNIT_TESTS)
def test_unit_tests_of_all_kinds(box, name):
    test = UnitTest(UNIT_TESTS[name], entry_points=("add",) if "check" in name else ())
    assert verdict(box, ADD, test) == "AC"
    assert verdict(box, "def add(a, b): return a - b if a else 0", test) == "WA"
    assert verdict(box, "def add(a, b): raise ValueError", test) == "WA"
    assert verdict(box, "def add(a, b):\n    while True: pass", test) == "TLE"
    assert verdict(box, "def add(a, b: return", test) == "CE"


HACKS = {
    "always equal": "class E:\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "leaving with success": "import sys\ndef add(a, b): sys.exit(0)",
    "leaving at import": "import os\nos._exit(0)",
    "patched asserts": "import unittest, builtins\nunittest.TestCase.assertEqual = lambda *a: None\n"
    "builtins.AssertionError = type('A', (Exception,), {})\ndef add(a, b): return 0",
    "forged answers": "import os\nos.write(4, b'{\"value\": 3}\\n' * 9)\ndef add(a, b): return 0",
    "forged verdict": 'import os\nos.write(4, b\'{"verdict": "passed"}\\n\')\ndef add(a, b): return 0',
    "its caller's frames": "import sys\ndef add(a, b): return sys._getframe(1).f_locals.get('expected', 0)",
    "deep forged answer": "import os\nos.write(4, b'{\"value\": ' + b'[' * 60 + b']' * 60 + b'}\\n')\n"
    "def add(a, b): return 0",
    "endless forged answers": "import os\ndef add(a, b):\n    while True: os.write(4, b'{\"value\": 3}\\n' * 5000)",
    "an answer too long to hand back": "def add(a, b): return 'a' * ((1 << 20) - 2)",
    "an answer too deep to hand back": "o = 1\nfor _ in range(50): o = [o]\ndef add(a, b): return o",
    "a lying number": "class N(int):\n    __eq__ = lambda s, o: True\ndef add(a, b): return N(0)",
}


@pytest.mark.parametrize("name", HACKS)
@pytest.mark.parametrize("kind", ["unittest", "asserts"])
def test_hacks_of_unit_tests_do_not_pay(box, name, kind):
    test = UnitTest(UNIT_TESTS[kind].replace("add(1, 2)", "add(1, 2) + 0"))
    if name == "forged answers":
        test = UnitTest("assert [add(n, n) for n in range(12)] == [2 * n for n in range(12)]")
    assert verdict(box, HACKS[name], test) in ("WA", "RE")


@pytest.mark.parametrize("test", ITERATING_TESTS)
@pytest.mark.parametrize("name", ENDED_ITERATIONS)
def test_ending_the_iteration_of_a_test_does_not_pay(box, name, test):
    assert verdict(box, "def f(x): return 2 * x", UnitTest(test)) == "AC"
    assert verdict(box, ENDED_ITERATIONS[name], UnitTest(test)) in ("WA", "RE")


def test_an_iterator_of_the_program_ends_the_iteration_of_the_test(box):
    source = "class Two:\n    n = 0\n    def __iter__(self): return self\n    def __next__(self):\n"
    source += "        self.n += 1\n        if self.n > 2: raise StopIteration\n        return self.n\n"
    test = "two = Two()\nassert (next(two), next(two), next(two, 'end')) == (1, 2, 'end')\nassert list(Two()) == [1, 2]"
    assert verdict(box, source, UnitTest(test)) == "AC"


def test_a_test_that_starts_unittest_itself_is_judged(box):
    test = UNIT_TESTS["unittest"] + "\nunittest.main()"
    assert verdict(box, ADD, UnitTest(test)) == "AC"
    assert verdict(box, "def add(a, b): return 0", UnitTest(test)) == "WA"


def test_classes_and_generators_are_called_from_afar(box):
    source = (
        "class Box:\n    def __init__(self): self.items = []\n    def put(self, x): self.items.append(x); return self\n"
    )
    source += "def count(n):\n    yield from range(n)\n"
    test = "box = Box()\nbox.put(1).put(2)\nassert box.items == [1, 2]\nassert list(count(3)) == [0, 1, 2]"
    assert verdict(box, source, UnitTest(test)) == "AC"


def test_exceptions_of_the_program_are_caught_by_their_base(box):
    source = "class Mine(ValueError): pass\ndef f(x): raise Mine('no')\ndef g():\n    yield 1\n    yield 2"
    test = "try:\n    f(1)\nexcept ValueError as error:\n    assert str(error) == 'no'\nelse:\n    assert False\n"
    assert verdict(box, source, UnitTest(test + "assert next(g()) == 1")) == "AC"


def test_changes_deep_in_arguments_are_seen_through_other_names(box):
    test = "row = [1, 2]\npair = ([row], {'r': [3]})\nheld = pair[1]['r']\nchange(pair)\n"
    test += "assert row == [2, 1] and held == [3, 4]"
    source = "def change(pair):\n    pair[0][0].reverse()\n    pair[1]['r'].append(4)"
    assert verdict(box, source, UnitTest(test)) == "AC"


def test_arguments_changed_in_place_are_seen_by_the_test(box):
    test = UnitTest("items = [3, 1, 2]\narrange(items)\nassert items == [1, 2, 3]")
    assert verdict(box, "def arrange(items): items.sort()", test) == "AC"
    assert verdict(box, "def arrange(items): return sorted(items)", test) == "WA"


NEEDS_VALUES = [
    "assert add(1, 2) == 3 and LIMIT == 5",
    "from solution import LIMIT\nassert LIMIT + add(1, 2) == 8",
    "try:\n    add(1, 2)\nexcept Mine:\n    pass",
]


@pytest.mark.parametrize("test", ["def f(:", "raise OSError", "x = 1", "assert add(lambda: 1, 2) == 3", *NEEDS_VALUES])
def test_a_broken_unit_test_is_an_internal_error(box, test):
    assert verdict(box, ADD, UnitTest(test)) == "IE"


def test_an_object_in_place_of_a_value_is_the_programs_fault(box):
    test = UnitTest("assert decode(encode('x')) == 'x'")
    assert verdict(box, "encode = lambda s: object()\ndecode = lambda s: s", test) == "WA"


@pytest.mark.parametrize(
    ("checker", "expected", "output", "right"),
    [
        (Exact(), b"a b\n", b"a b", True),
        (Exact(), b"a b\n", b"a  b\n", False),
        (Tokens(), b"1 2\n3", b"1\n2   3\n\n", True),
        (Tokens(), b"1 2", b"1 2 3", False),
        (Tokens(), b"12", "１２".encode(), False),
        (Lines(), b"1 2\n3\n", b"\n 1 2 \r\n3", True),
        (Lines(), b"1 2\n3", b"1 2 3", False),
        (Lines(), b"1 2.50", b"1.0   2.5", True),
        (Lines(), b"case 1", b"case 1.0", False),
        (Lines(), b"50000000000000000", b"50000000000000001", False),
        (Lines(), b"1", b"sNaN", False),
        (Lines(), b"1", "１".encode(), False),
        (Floats(1e-6, 0), b"0.5 x", b"0.5000001 x", True),
        (Floats(1e-6, 0), b"0.5", b"0.6", False),
        (Floats(1e-6, 0), b"0.5", b"nan", False),
        (Floats(1e-6, 0), b"0.5", b"1e999", False),
        (Floats(0, 1e-6), b"1000000", b"1000000.5", True),
        (Floats(), b"1", b"0x1", False),
    ],
)
def test_checkers(checker, expected, output, right):
    assert (checker(expected, output) == "") == right


def test_checkers_do_not_tell_what_was_expected():
    assert "secret" not in Tokens()(b"secret", b"x") + Exact()(b"secret\n", b"x\ny")


def test_a_checker_of_the_problem_decides(box):
    checker = Custom("def check(stdin, output, expected): return sum(map(int, output.split())) == int(stdin)")
    assert verdict(box, "print(1, int(input()) - 1)", StdioTest("7", ""), checker=checker) == "AC"
    assert verdict(box, "print(1)", StdioTest("7", ""), checker=checker) == "WA"
    assert verdict(box, "print('x')", StdioTest("7", ""), checker=checker) == "WA", "no way out of training"
    assert verdict(box, "print('é' * 200000)", StdioTest("7", ""), checker=checker) == "WA"


def test_a_checker_that_fails_on_the_expected_output_is_an_internal_error_for_all_programs(box):
    checker = Custom("def check(stdin, output, expected): return int(output) == int(expected)")
    for source in ("print(7)", "print('x')"):
        assert verdict(box, source, StdioTest("", "seven"), checker=checker) == "IE"
    assert verdict(box, "print('x')", StdioTest("", "7"), checker=checker) == "WA"


@given(PLAIN_VALUES)
def test_plain_values_survive(value):
    back = plain.decode(plain.encode(value))
    assert back == value or "nan" in repr(value)
    assert type(back) is type(value)


@given(st.text(max_size=200) | st.lists(st.sampled_from('[]{}":,1e9'), max_size=300).map("".join))
def test_hostile_text_is_refused_or_plain(text):
    with contextlib.suppress(plain.NotPlain):
        plain.encode(plain.decode(text))


@pytest.mark.parametrize(
    "text", ["[" * 10**5 + "]" * 10**5, "1" * 5000, "NaN", '{"set": [[1]]}', '{"x": 1}', '"' + "a" * (2 << 20)]
)
def test_bombs_are_no_plain_values(text):
    with pytest.raises(plain.NotPlain):
        plain.decode(text)


@pytest.mark.parametrize(
    ("wanted", "got", "tolerance", "right"),
    [
        ([1, (2,)], (1, [2]), 0, True),
        ([1], [1, 2], 0, False),
        (math.nan, math.nan, 0, False),
        (1, True, 0, False),
        (1, 1.0, 0, True),
        ("1", 1, 0, False),
        (0.5, 10**400, 0.1, False),
        (4, 4.0000000001, 1e-6, True),
        (4, 4.0000000001, 0, False),
        (10**20, 10**20 + 1, 1e-6, False),
        ({"a": 0.1}, {"a": 0.1000001}, 1e-5, True),
        ({"1": 2, "-3": 4}, {1: 2, -3: 4}, 0, True),
        ({"1": 2}, {1: 3}, 0, False),
        ({"1": 2}, {"1": 2, 1: 2}, 0, False),
        ({1: 2}, {"1": 2}, 0, False),
        ({1, (2, 3)}, frozenset([(2.0, 3), 1]), 0, True),
        ({1, 2}, {1, 3}, 0, False),
        ([1, 2], deque([1, 2]), 0, True),
        ({"a": 2}, Counter("aa"), 0, True),
        ([], {}, 0, False),
    ],
)
def test_equality_of_values(wanted, got, tolerance, right):
    assert same_value(plain.to_json(wanted), plain.to_json(got), tolerance) == right


@given(PLAIN_VALUES)
def test_a_value_is_equal_to_itself_alone(value):
    assert same_value(plain.to_json(value), plain.to_json(value)) or "nan" in repr(value)
    assert not same_value(plain.to_json([value]), plain.to_json([value, value]))
    assert not same_value(plain.to_json({"a": value}), plain.to_json({"b": value}))


SUMS = {
    "python": "print(sum(map(int, input().split())))",
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); return 0; }',
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }",
    "javascript": "const t = require('fs').readFileSync(0, 'utf8').split(' '); console.log(+t[0] + +t[1])",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages(box, language):
    if language not in AVAILABLE:
        pytest.skip(f"{LANGUAGES[language].tool} is not installed")
    test = StdioTest("3 4", "7")
    assert verdict(box, SUMS[language], test, language=language) == "AC"
    assert verdict(box, SUMS[language], StdioTest("3 5", "7"), language=language) == "WA"


@pytest.mark.skipif("cpp" not in AVAILABLE, reason="g++ is not installed")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int main() {", {"CE"}),
        ('#include "/etc/passwd"\nint main() {}', {"CE"}),
        ('#include "/dev/zero"\nint main() {}', {"CE"}),
        ("int main() { for (volatile int i = 0;; ++i); }", {"TLE"}),
        ("#include <vector>\nint main() { std::vector<int> v(1 << 28, 1); return v[5] - 1; }", {"MLE", "RE"}),
        ("#include <unistd.h>\nint main() { return fork() < 0 ? 3 : 0; }", {"RE"}),
        ("#include <sys/socket.h>\nint main() { return socket(AF_INET, SOCK_STREAM, 0) < 0 ? 3 : 0; }", {"RE"}),
        ('#include <fcntl.h>\nint main() { return open("/etc/passwd", O_RDONLY) < 0 ? 3 : 0; }', {"RE"}),
        ("int main() { return *(volatile int*)0; }", {"RE"}),
        ('#include <unistd.h>\nint main() { execl("/bin/sh", "sh", "-c", "echo 7", (char*)0); return 3; }', {"RE"}),
    ],
)
def test_compiled_programs_are_contained(box, source, expected):
    assert verdict(box, source, StdioTest("", "7"), language="cpp") in expected


def test_unknown_languages_and_those_not_asked_for_are_refused():
    with pytest.raises(SandboxUnavailable, match="known are python"):
        find_language("cobol")
    with Sandbox(workers=1) as box, pytest.raises(SandboxError, match="not for cpp"):
        box.run(Program("cpp", ""))
