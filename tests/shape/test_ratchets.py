"""The shape of the code, as a ratchet: these limits are only ever lowered."""

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("dpo_core", "flows", "deployments")
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "base", "util", "misc"}
Function = ast.FunctionDef | ast.AsyncFunctionDef

FILE_LINES, FUNCTION_LINES, MEDIAN_LINES, PARAMETERS, INHERITANCE = 300, 40, 8, 5, 2


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def functions() -> Iterator[tuple[str, Function]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(node: Function) -> int:
    """Lines of a function without its docstring."""
    whole = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return whole - ((first.end_lineno or first.lineno) - first.lineno + 1 if is_docstring else 0)


def test_files_are_short() -> None:
    assert {str(path): n for path in sources() if (n := len(path.read_text().splitlines())) > FILE_LINES} == {}


def test_functions_are_short() -> None:
    sizes = {name: lines(node) for name, node in functions()}
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES} == {}
    assert statistics.median(sizes.values()) <= MEDIAN_LINES


def test_functions_take_few_parameters() -> None:
    def count(node: Function) -> int:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([argument for argument in every if argument.arg not in ("self", "cls")])

    assert {name: n for name, node in functions() if (n := count(node)) > PARAMETERS} == {}


def test_inheritance_of_ours_is_shallow() -> None:
    parents = {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for path in sources()
        if path.name != "settings.py"  # pydantic-settings is used by inheriting
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }

    def depth(name: str) -> int:
        return 1 + max((depth(parent) for parent in parents[name] if parent in parents), default=0)

    assert {name: depth(name) for name in parents if depth(name) > INHERITANCE} == {}


def test_names_say_something() -> None:
    assert [str(path) for path in sources() if path.stem in FORBIDDEN_NAMES] == []


def test_a_lazy_import_says_which_cost_it_defers() -> None:
    silent = []
    for path in sources():
        text = path.read_text()
        rows = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, Function):
                imports = [part for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom)]
                near = "\n".join(row for part in imports[:1] for row in rows[max(part.lineno - 4, 0) : part.lineno])
                if imports and not re.search("lazy", near, re.IGNORECASE):
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert silent == []


@pytest.mark.parametrize("pattern", [r"T[O]DO|FIX[M]E|X[X]X", r"/wo[r]k/|/ro[o]t/|/ho[m]e/"])
def test_nothing_is_left_open_or_tied_to_a_place(pattern: str) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in tracked.split("\0") if name.endswith((".py", ".toml", ".md", ".yaml", "Makefile"))]
    assert [str(path) for path in files if path.is_file() and re.search(pattern, path.read_text())] == []


def test_constraints_are_complete() -> None:
    """Every package that the environment has is pinned, so that a new one gets the same: one file names them all."""
    from importlib.metadata import distributions

    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    def unpinned(path: Path) -> set[str]:
        return installed - {plain(line.split("==")[0]) for line in path.read_text().splitlines()}

    tools = {"dpo-flows", "pip", "setuptools", "wheel"}
    installed = {plain(found.metadata["Name"]) for found in distributions()} - tools
    missing = {path.name: unpinned(path) for path in sorted(ROOT.glob("constraints*.txt"))}
    assert not all(missing.values()), missing
