"""Mutation testing: small faults are put into the code one at a time, and the tests must find them.

It is for the pure parts: ``clusterkit/core`` and the dispatcher. Each mutant is a child of one
process that has imported what never changes, takes the mutated module from memory (the working
tree is not touched) and runs the quick tests of that module until the first failure.

Not mutated: annotations, decorators, docstrings and other texts, what is raised (only that it is),
assertions, and what goes into the log.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
_CPU_SECONDS = 60
_MEMORY = 6 << 30

_PLAN = ("unit/test_plan.py", "unit/test_machine.py", "property/test_plan.py")
_DISPATCHER = ("unit/test_dispatcher.py", "unit/test_machine.py", "property/test_dispatcher.py")
TESTS: dict[str, tuple[str, ...]] = {
    "clusterkit.core.balance": ("unit/test_balance.py", "property/test_balance.py"),
    "clusterkit.core.bounded": ("unit/test_balance.py", "property/test_balance.py"),
    "clusterkit.core.codec": ("unit/test_codec.py", "property/test_membership.py"),
    "clusterkit.core.divergence": ("unit/test_comparison.py",),
    "clusterkit.core.forecast": ("unit/test_forecast.py",),
    "clusterkit.core.hashing": ("unit/test_hashing.py", "property/test_placement.py"),
    "clusterkit.core.health": ("unit/test_health.py", "unit/test_machine.py"),
    "clusterkit.core.holdings": ("unit/test_holdings.py", *_PLAN),
    "clusterkit.core.keys": ("unit/test_keys.py", "unit/test_membership.py"),
    "clusterkit.core.ledger": _PLAN,
    "clusterkit.core.local_events": (
        *_PLAN,
        "unit/test_passages.py",
        "property/test_simulation.py",
    ),
    "clusterkit.core.membership": ("unit/test_membership.py", "property/test_membership.py"),
    "clusterkit.core.mending": ("unit/test_balance.py", "property/test_balance.py"),
    "clusterkit.core.ownership": ("unit/test_ownership.py", "property/test_plan.py"),
    "clusterkit.core.placement": ("unit/test_placement.py", "property/test_placement.py"),
    "clusterkit.core.plan": _PLAN,
    "clusterkit.core.present": ("unit/test_machine.py",),
    "clusterkit.core.primaries": ("unit/test_balance.py", "property/test_balance.py"),
    "clusterkit.core.records": ("unit/test_membership.py", "unit/test_codec.py"),
    "clusterkit.core.shares": ("unit/test_balance.py", "property/test_balance.py"),
    "clusterkit.engine.changes": _DISPATCHER,
    "clusterkit.engine.deadlines": _DISPATCHER,
    "clusterkit.engine.dispatcher": _DISPATCHER,
    "clusterkit.engine.interest": _DISPATCHER,
    "clusterkit.engine.lanes": _DISPATCHER,
    "clusterkit.engine.passages": (
        "unit/test_passages.py",
        "unit/test_machine.py",
        "property/test_simulation.py",
    ),
    "clusterkit.engine.rebalances": _DISPATCHER,
    "clusterkit.engine.slots": _DISPATCHER,
    "clusterkit.engine.work": _DISPATCHER,
}
"""The modules, and the tests of each, those that find most first."""


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    module: str
    number: int
    line: int
    before: str
    after: str


_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
}


class Faults(ast.NodeTransformer):
    """Walks through a module and numbers its possible faults; the one ``wanted`` is put in."""

    def __init__(self, wanted: int = -1) -> None:
        self.wanted = wanted
        self.found: list[tuple[int, str, str]] = []

    def visit(self, node: ast.AST) -> ast.AST:
        for other in _faults(node):
            number = len(self.found)
            self.found.append((getattr(node, "lineno", 0), ast.unparse(node), ast.unparse(other)))
            if number == self.wanted:
                return ast.copy_location(other, node)
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or _is_log(node):
            return node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(v) if isinstance(v, ast.AST) else v for v in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _faults(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]):
            for other in _COMPARISONS[type(op)]:
                yield _with(node, ops=[other()])
        case ast.BoolOp(op=op):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _ARITHMETIC:
            yield _with(node, op=_ARITHMETIC[type(op)]())
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if isinstance(test, ast.Name | ast.Attribute | ast.Call):
                yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Return(value=value):
            if value is not None and not (isinstance(value, ast.Constant) and value.value is None):
                yield _with(node, value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) if not _is_log(node):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def _is_log(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="note" | "debug" | "info"))):
            return True
    return False


def path_of(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")


def mutants_of(module: str) -> list[Mutant]:
    faults = Faults()
    faults.visit(ast.parse(path_of(module).read_text()))
    return [
        Mutant(module, number, line, before.split("\n")[0], after.split("\n")[0])
        for number, (line, before, after) in enumerate(faults.found)
    ]


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the mutated module in memory."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._mutant.module:
            return None
        return importlib.util.spec_from_file_location(name, path_of(name), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        path = path_of(self._mutant.module)
        tree = ast.parse(path.read_text())
        Faults(self._mutant.number).visit(tree)
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), module.__dict__)


def run_tests(module: str, mutant: Mutant | None) -> int:
    """The exit status of the tests of a module, in this process, which is of no use afterwards."""
    import pytest

    if mutant is not None:
        sys.meta_path.insert(0, _Mutated(mutant))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["--hypothesis-profile", "mutants"]
    # What pytest does for its asserts it does to all modules of a package that brings a plugin, as
    # ours, by a finder before all others: the fault would never be seen.
    options += ["--assert=plain"]
    return int(pytest.main([*options, *(str(ROOT / "tests" / name) for name in TESTS[module])]))


def fork(module: str, mutant: Mutant | None) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            status = run_tests(module, mutant)
        os._exit(status)
    return pid


def outcomes(mutants: Sequence[Mutant], workers: int) -> Iterator[tuple[Mutant, str]]:
    running: dict[int, Mutant] = {}
    waiting = list(reversed(mutants))
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[fork(mutant.module, mutant)] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        if os.WIFSIGNALED(status):
            yield mutant, "timeout"
        else:
            yield mutant, "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def _import_what_stays() -> None:
    for name in ("pytest", "hypothesis.stateful", "grpc", "google.protobuf.message", "pydantic"):
        importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="tools/mutants.py")
    parser.add_argument("--only", help="only modules whose names contain this")
    parser.add_argument("--sample", type=int, help="so many mutants instead of all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--at-least", type=float, default=85.0, help="per cent killed, or it fails")
    args = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["CI"] = "true"  # the same examples for each mutant, see tests/conftest.py
    _import_what_stays()
    modules = [module for module in TESTS if not args.only or args.only in module]
    for tests in {TESTS[module]: module for module in modules}.values():
        _, status = os.waitpid(fork(tests, None), 0)
        if status:
            print(f"the tests of {tests} fail without any fault; mend that first", file=sys.stderr)
            return 2
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    if args.sample is not None and args.sample < len(mutants):
        mutants = random.Random(args.seed).sample(mutants, args.sample)
    results = []
    for mutant, outcome in outcomes(mutants, args.workers):
        results.append((mutant, outcome))
        if outcome == "survived":
            where = f"{path_of(mutant.module).relative_to(ROOT)}:{mutant.line}"
            print(f"survived: {where}: {mutant.before}  ->  {mutant.after}", flush=True)
    out = ROOT / "build" / "mutants"
    out.mkdir(parents=True, exist_ok=True)
    record = [{**asdict(mutant), "outcome": outcome} for mutant, outcome in results]
    (out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    return report(results, args.at_least)


def report(results: Sequence[tuple[Mutant, str]], at_least: float) -> int:
    """Prints the table; the exit status."""
    total = Counter(mutant.module for mutant, _ in results)
    killed = Counter(mutant.module for mutant, outcome in results if outcome != "survived")
    for module, count in total.items():
        print(f"{module:36} {killed[module]:5} of {count:5} killed, {killed[module] / count:6.1%}")
    share = 100.0 * killed.total() / max(1, total.total())
    print(f"{'all':36} {killed.total():5} of {total.total():5} killed, {share:5.1f}%")
    return 0 if share >= at_least else 1


if __name__ == "__main__":
    sys.exit(main())
