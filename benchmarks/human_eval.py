"""HumanEval's own solutions must pass its tests in the sandbox; wrong programs made of them must not.

    python benchmarks/human_eval.py HumanEval.jsonl.gz --workers 2

A task becomes a unit test: its `prompt` is the setup (some tests call helpers that stand there), `test` the source,
`entry_point` the entry point; `prompt` + `canonical_solution` is the program. Wrong programs are of two kinds: hacks,
which must fail in every task, and the solution with one operator or number changed. A changed solution may still be
right, or wrong in a way that the tests do not see: so program and test also run as one script, whose exit code says
whether the change shows. The two must agree. What the tests do not see is counted apart.
"""

import argparse
import ast
import gzip
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from conditions import conditions

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rewards.sandbox.judge import UnitTest, judge
from rewards.sandbox.limits import Limits
from rewards.sandbox.pool import Program, Sandbox

LIMITS = Limits(cpu_s=5.0)
HACKS = {
    "returns None": "def {name}(*args, **named): return None",
    "ends the iteration": "def {name}(*args, **named): raise StopIteration",
    "leaves with success": "def {name}(*args, **named): raise SystemExit",
    "leaves at once": "import os\nos._exit(0)",
    "is equal to everything": "class Equal:\n    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *_: True\n"
    "    __ne__ = lambda *_: False\n    __hash__ = __len__ = lambda *_: 1\n"
    "    __sub__ = __rsub__ = __abs__ = lambda *_: 0\n"
    "def {name}(*args, **named): return Equal()",
}
_SWAPS: dict[type, type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    task: dict
    kind: str
    source: str


def read_tasks(path: Path) -> list[dict]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def attempts(task: dict, mutants: int) -> Iterator[Attempt]:
    right = task["prompt"] + task["canonical_solution"]
    yield Attempt(task, "solution", right)
    for kind, hack in HACKS.items():
        yield Attempt(task, kind, f"{right}\n{hack.format(name=task['entry_point'])}\n")
    places = count_places(right, task["entry_point"])
    chosen = random.Random(task["task_id"]).sample(range(places), min(mutants, places))
    for place in chosen:
        yield Attempt(task, "mutation", mutate(right, task["entry_point"], place))


class _Mutation(ast.NodeTransformer):
    """Changes the operator or number at one place, in the order in which they are visited."""

    def __init__(self, place: int):
        self.left = place

    def visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        match node:
            case ast.Constant(value=bool()):
                return node
            case ast.Constant(value=(int() | float()) as number):
                changed: ast.AST = ast.Constant(number + 1)
            case _ if type(node) in _SWAPS:
                changed = _SWAPS[type(node)]()
            case _:
                return node
        self.left -= 1
        return changed if self.left == -1 else node


def mutate(source: str, function: str, place: int) -> str:
    """Only in the function asked for: the helpers beside it are the test's as well."""
    tree = ast.parse(source)
    _Mutation(place).visit(_find(tree, function))
    return ast.unparse(ast.fix_missing_locations(tree))


def count_places(source: str, function: str) -> int:
    counter = _Mutation(-1)
    counter.visit(_find(ast.parse(source), function))
    return -1 - counter.left


def _find(tree: ast.Module, function: str) -> ast.AST:
    return next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)


def judged(box: Sandbox, attempt: Attempt) -> tuple[str, bool]:
    """The verdict, and whether it is right."""
    task = attempt.task
    test = UnitTest(task["test"], task["prompt"], (task["entry_point"],))
    verdict = judge(box, Program("python", attempt.source), [test], limits=LIMITS).verdict.value
    if attempt.kind == "solution":
        return verdict, verdict == "AC"
    if attempt.kind == "mutation" and seems_right(box, attempt):
        return "unseen", verdict == "AC"
    return verdict, verdict not in ("AC", "IE")


def seems_right(box: Sandbox, attempt: Attempt) -> bool:
    """Whether program and test pass in one interpreter; a mutation plays no tricks."""
    script = f"{attempt.source}\n{attempt.task['test']}\ncheck({attempt.task['entry_point']})\n"
    return box.run(Program("python", script), limits=LIMITS).failure is None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="HumanEval.jsonl, or .jsonl.gz")
    parser.add_argument("--mutants", type=int, default=3, help="changed solutions per task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tier", default="auto")
    parser.add_argument("--json", type=Path, help="write the counts here")
    options = parser.parse_args()
    todo = [attempt for task in read_tasks(options.file) for attempt in attempts(task, options.mutants)]
    with Sandbox(options.tier, options.workers) as box, ThreadPoolExecutor(options.workers) as threads:
        outcomes = list(threads.map(lambda attempt: judged(box, attempt), todo))
        tier = box.tier
    counts: dict[str, Counter[str]] = {}
    wrong = 0
    for attempt, (verdict, right) in zip(todo, outcomes, strict=True):
        counts.setdefault(attempt.kind, Counter())[verdict] += 1
        if not right:
            wrong += 1
            print("WRONG", attempt.task["task_id"], attempt.kind, verdict)
    for kind, verdicts in counts.items():
        print(f"{kind}: {sum(verdicts.values())}, {dict(verdicts)}")
    print(f"tier {tier}: {len(todo) - wrong} of {len(todo)} as they should be")
    if options.json:
        record = {**conditions(), "tier": tier, "wrong": wrong, "counts": counts}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
