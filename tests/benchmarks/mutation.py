"""Mutants of the numerical rooms: a random sample, each against the tests that run the line that is changed.

    pip install cosmic-ray pytest-cov
    python -m pytest -n 0 --cov=gammapy_accmaker --cov-context=test --cov-report= --junitxml=junit.xml \\
        -o junit_family=xunit1
    python tests/benchmarks/mutation.py [--sample 340] [--seed 6] [--results mutants.jsonl]

The second line tells which tests run which line, and how long they take. Tests added later: run their files the same
way with `--cov-append` and another junit file, and `--again` tries the survivors once more. What is found is kept in
the results file, so that a run that was stopped goes on.

The operators are those of cosmic-ray. Left out is what any call would find, since it would flatter the tests: bitwise
in place of arithmetic operators (a TypeError for floats). Left out is what no test has to find: `is` in place of `==`
(true or not as the interpreter shares objects), annotations, and the words of logs and errors.

Mutants live in a copy of the checkout. Each is tested in a fork of a process that has loaded gammapy already: in the
fast tests of its statement first, then in those of its function, beside these and of its file, until one fails.
"""

import argparse
import ast
import difflib
import importlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from coverage import CoverageData

ROOT = Path(__file__).parents[2]
PACKAGE = "gammapy_accmaker"
ROOMS = ("camera", "data", "models", "products")
BATCHES = (8.0, 30.0, float("inf"))  # s of tests that are run in one go
MEMORY = 8 << 30
APART = re.compile("Shift|Bit|Is")  # never put in place of an operator of the other kind
MAY_BREAK = re.compile("_Mul_|_Pow_|_Not")


# mutants


def useful(operator):
    """Whether an operator of cosmic-ray is used: see above."""
    name = operator.removeprefix("core/")
    if name.startswith(("ReplaceBinaryOperator", "ReplaceComparisonOperator")):
        before, after = name.split("_")[1:]
        return bool(APART.search(before)) == bool(APART.search(after)) and "Shift" not in name
    return not get_operator(operator).arguments()


def span(node):
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def first_line(node):
    """That of its decorators, if it has some."""
    return min(n.lineno for n in (node, *getattr(node, "decorator_list", ())))


def untested_spans(tree):
    """Annotations, and the words of logs and errors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield span(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield span(node.returns)
        elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and ast.unparse(node).startswith("log.")):
            yield from (span(words) for words in ast.walk(node) if isinstance(words, ast.JoinedStr))


def mutants_of(path):
    """Mutants of a file: dicts that JSON can hold."""
    source = path.read_text()
    left_out, nodes = list(untested_spans(ast.parse(source))), list(ast_nodes(get_ast(source)))
    for name in filter(useful, operator_names()):
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, stop) in enumerate(places):
            if not any(a <= start and stop <= b for a, b in left_out):
                file = str(path.relative_to(ROOT))
                yield {"file": file, "operator": name, "occurrence": occurrence, "start": start, "stop": stop}


def mutated(mutant):
    """Source of a mutant; None where it is no Python."""
    changed = mutate_code((ROOT / mutant["file"]).read_text(), get_operator(mutant["operator"])(), mutant["occurrence"])
    try:
        compile(changed, mutant["file"], "exec")
    except SyntaxError:
        return None
    return changed


def draw(number, seed):
    """That many mutants at random."""
    files = sorted(p for room in ROOMS for p in (ROOT / PACKAGE / room).rglob("*.py"))
    everything = [mutant for path in files for mutant in mutants_of(path)]
    random.Random(seed).shuffle(everything)
    print(f"{len(everything)} mutants, of which {number} are drawn", flush=True)
    # cosmic-ray takes the stars of arguments for operators
    good = (m for m in everything if not MAY_BREAK.search(m["operator"]) or mutated(m) is not None)
    return list(itertools.islice(good, number))


# tests of a line


class TestMap:
    """Which tests run a line, and the seconds that each takes."""

    def __init__(self, coverage, junits):
        self.data, self.seconds = CoverageData(coverage), {}
        self.data.read()
        for junit in junits:
            for case in ElementTree.parse(junit).iter("testcase"):
                if case.find("skipped") is None:
                    self.seconds[f"{case.get('file')}::{case.get('name')}"] = float(case.get("time"))
        self.extent = Counter()
        for file in self.data.measured_files():
            for contexts in self.data.contexts_by_lineno(file).values():
                self.extent.update({context.split("|")[0] for context in contexts})

    def order(self, test):
        """Fast tests first, and those that look at little: they are the closest."""
        return max(self.seconds[test], 0.02) * self.extent[test]

    def of_lines(self, file, lines):
        by_line = self.data.contexts_by_lineno(str(ROOT / file))
        found = {context.split("|")[0] for line in lines for context in by_line.get(line, ())}
        return found & self.seconds.keys()

    def of_mutant(self, mutant):
        """Tests of the statement, then of the function or of what uses a constant, beside these, and of the file."""
        tree, line = ast.parse((ROOT / mutant["file"]).read_text()), mutant["start"][0]
        around = [n for n in ast.walk(tree) if hasattr(n, "lineno") and first_line(n) <= line <= n.end_lineno]
        statement = max((n for n in around if isinstance(n, ast.stmt)), key=lambda n: n.lineno)
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
        inside = [f for f in functions if f in around]
        if not inside:
            names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            inside = [f for f in functions if names & {n.id for n in ast.walk(f) if isinstance(n, ast.Name)}]
        own = range(line, line + 1) if hasattr(statement, "body") else range(statement.lineno, statement.end_lineno + 1)
        wider = {k for f in inside[-1:] or inside for k in range(f.lineno, f.end_lineno + 1)}
        found = [self.of_lines(mutant["file"], lines) for lines in (own, wider, range(1, 10000))]
        # what a cache holds is run by the first test that needs it, so those beside it count as well
        files = {test.split("::")[0] for test in found[0] | found[1]}
        found.insert(2, {test for test in self.seconds if test.split("::")[0] in files})
        ordered = [test for level in found for test in sorted(level, key=self.order)]
        return list(dict.fromkeys(ordered))


def batches(tests, seconds):
    """Tests in order, cut by the seconds that they take together; those of a file side by side, for their fixtures."""
    out, total, limits = [[]], 0.0, iter(BATCHES)
    limit = next(limits)
    for test in tests:
        total += seconds[test]
        if out[-1] and total > limit:
            out.append([])
            total, limit = seconds[test], next(limits)
        out[-1].append(test)
    return [sorted(batch, key=lambda t: (t.split("::")[0], seconds[t])) for batch in out if batch]


# runs


class Chosen:
    """Runs some tests in their order; an alarm ends a test that does not end. Names the first that fails."""

    def __init__(self, tests, seconds, report):
        self.tests, self.seconds, self.report = {t: k for k, t in enumerate(tests)}, seconds, report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.tests), key=lambda i: self.tests[i.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        self.report.write_text(nodeid)
        signal.alarm(int(30 + 5 * self.seconds[nodeid]))

    def pytest_runtest_logreport(self, report):
        if report.failed:
            signal.alarm(0)


def run_tests(tree, tests, seconds, limit):
    """Status and the test that was run last: passed, failed, endless, out of time, or a broken run."""
    report = tree / "running.txt"
    report.write_text("import")
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(tree)
        out = os.open(tree / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.path.insert(0, str(tree))
        files = list(dict.fromkeys(t.split("::")[0] for t in tests))
        code = 3
        try:
            code = pytest.main(["-x", "-q", "--tb=short", "-n0", *files], plugins=[Chosen(tests, seconds, report)])
        finally:
            os._exit(int(code))
    status, end = None, time.monotonic() + limit
    while status is None and time.monotonic() < end:
        time.sleep(0.05)
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            names = {0: "passed", 1: "failed", 2: "failed"}
            code = os.waitstatus_to_exitcode(code)
            status = names.get(code, "endless" if code == -signal.SIGALRM else "failed" if code < 0 else "broken")
    try:
        os.killpg(pid, signal.SIGKILL)  # and what it has started
    except ProcessLookupError:
        pass
    if status is None:
        os.waitpid(pid, 0)
    return status or "out of time", report.read_text()


def checkout(tree):
    """A copy to change."""
    for name in (PACKAGE, "tests", "tutorials"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree / name)


def load_others(tree):
    """Import what the package imports, but not the package."""
    script = f"import sys, pkgutil, {PACKAGE}\n"
    script += (
        f"for m in pkgutil.walk_packages({PACKAGE}.__path__, '{PACKAGE}.'): __import__(m.name)\nprint(*sys.modules)"
    )
    names = subprocess.run([sys.executable, "-c", script], cwd=tree, capture_output=True, text=True, check=True).stdout
    for name in names.split():
        if not name.startswith((PACKAGE, "__main")):
            try:
                importlib.import_module(name)
            except ImportError:
                pass


def test_mutant(mutant, number, tree, tests, budget):
    """Fill in what became of a mutant."""
    path, source, changed = tree / mutant["file"], (ROOT / mutant["file"]).read_text(), mutated(mutant)
    diff = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
    mutant["diff"] = [line for line in diff if line[0] in "+-" and line[:3] not in ("+++", "---")]
    before, start = path.stat(), time.monotonic()
    path.write_text(changed)
    os.utime(path, (number + 1, number + 1))  # a time of its own, so that no compiled file of another mutant is taken
    ordered = tests.of_mutant(mutant)
    status, last = "no test", ""
    for batch in batches(ordered, tests.seconds):
        left = start + budget - time.monotonic()
        status, last = run_tests(tree, batch, tests.seconds, left) if left > 0 else ("out of time", batch[0])
        if status != "passed":
            break
    path.write_text(source)
    os.utime(path, (before.st_atime, before.st_mtime))
    killed = status in ("failed", "endless")
    mutant |= {
        "status": status,
        "killed": killed,
        "test": last,
        "seconds": time.monotonic() - start,
        "tests": len(ordered),
    }
    return mutant


def table(done):
    print(f"\n{'file':55s} killed survived total")
    for file in sorted({m["file"] for m in done}):
        killed = [m["killed"] for m in done if m["file"] == file]
        print(f"{file:55s} {sum(killed):6d} {len(killed) - sum(killed):8d} {len(killed):5d}")
    killed = sum(m["killed"] for m in done)
    print(f"{'all':55s} {killed:6d} {len(done) - killed:8d} {len(done):5d}  {100 * killed / len(done):.1f} %")
    print(dict(Counter(m["status"] for m in done)))
    for m in done:
        if not m["killed"]:
            print(
                f"\n{m['file']}:{m['start'][0]} {m['operator']} ({m['status']}, {m['tests']} tests)",
                *m["diff"],
                sep="\n",
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=340)
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--coverage", default=".coverage")
    parser.add_argument("--junit", nargs="+", default=["junit.xml"])
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--budget", type=float, default=120.0, help="most seconds for a mutant")
    parser.add_argument("--again", action="store_true", help="try the survivors of the results again")
    options = parser.parse_args()
    sample, done = draw(options.sample, options.seed), {}
    if options.results.is_file():
        for line in options.results.read_text().splitlines():
            mutant = json.loads(line)
            done[mutant["file"], mutant["operator"], mutant["occurrence"]] = mutant
    tests = TestMap(options.coverage, options.junit)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        tree = Path(folder)
        checkout(tree)
        load_others(tree)
        for number, mutant in enumerate(sample):
            key = mutant["file"], mutant["operator"], mutant["occurrence"]
            if key in done and (done[key]["killed"] or not options.again):
                continue
            done[key] = test_mutant(mutant, number, tree, tests, options.budget)
            with options.results.open("a") as results:
                results.write(json.dumps(mutant) + "\n")
            print(f"{number:4d} {mutant['status']:12s} {mutant['seconds']:5.1f} s  {mutant['file']}", flush=True)
        killers = sorted({m["test"] for m in done.values() if m["killed"]} & tests.seconds.keys())
        status, last = run_tests(tree, killers, tests.seconds, float("inf")) if killers else ("passed", "")
        print(f"the {len(killers)} tests that killed, without a mutant: {status} {last if status != 'passed' else ''}")
    table(list(done.values()))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    main()
