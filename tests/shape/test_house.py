"""The house: rooms of three to twelve modules, unique names, imports without circles, plain words, light preflight."""

import ast
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from dpo_core.config.recipe import Recipe
from dpo_core.pipeline.preflight import preflight
from dpo_core.stages import STAGES
from tests.conftest import ROOT
from tests.shape.test_ratchets import PACKAGES, Function, sources

FEWEST_MODULES, MOST_MODULES = 3, 12
# Names that several rooms may have: a registry each, reports of each kind of data, entry points, and stages' own.
SHARED_MODULE_NAMES = {"registry", "report", "__main__", "pipeline"} | {
    path.stem for path in (ROOT / "dpo_core" / "stages").rglob("*.py")
}
BANNED = {"told", "known", "shown", "opened", "asked", "one", "look", "near", "course", "place", "way", "river"}
# How many names of functions, parameters and variables are banned words: a field of a stored file. Only ever lowered.
BANNED_NAMES_LEFT = 1


def modules_by_folder() -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for path in sources():
        if path.name != "__init__.py":
            folders.setdefault(str(path.parent.relative_to(ROOT)), []).append(path.stem)
    return folders


def test_a_folder_holds_three_to_twelve_modules() -> None:
    counts = {folder: len(names) for folder, names in modules_by_folder().items()}
    assert {folder: n for folder, n in counts.items() if not FEWEST_MODULES <= n <= MOST_MODULES} == {}


def test_module_names_are_unique() -> None:
    counts = Counter(name for names in modules_by_folder().values() for name in names)
    assert {name for name, count in counts.items() if count > 1} - SHARED_MODULE_NAMES == set()


def test_class_names_are_unique() -> None:
    nodes = (node for path in sources() for node in ast.walk(ast.parse(path.read_text())))
    counts = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert {name: count for name, count in counts.items() if count > 1} == {}


def test_every_stage_is_in_the_list_and_none_is_defined_elsewhere() -> None:
    definitions = [name for path in sources() for name in re.findall(r'\bStage\(\s*"(\w+)"', path.read_text())]
    assert sorted(definitions) == sorted(STAGES)


def test_imports_have_no_circle() -> None:
    graph = grimp.build_graph(*PACKAGES)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    while leaves := {module for module, imported in imports.items() if not imported & imports.keys()}:
        imports = {module: imported for module, imported in imports.items() if module not in leaves}
    assert sorted(imports) == []


def names_of(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes, parameters and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name


def test_names_are_the_things_themselves() -> None:
    banned = [name for path in sources() for name in names_of(ast.parse(path.read_text())) if name in BANNED]
    assert len(banned) <= BANNED_NAMES_LEFT, Counter(banned)
    assert [path.stem for path in sources() if path.stem in BANNED] == []


@pytest.mark.parametrize("model", ["directory", "demo"])
def test_preflight_writes_nothing_and_costs_less_than_a_second(
    tmp_path: Path, stories: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(stories) if model == "directory" else "demo"
    sections = {"data": {"dataset": "demo"}, "model": {"model_name": name}, "warm_start": {"sft_steps": 3}}
    recipe = Recipe.model_validate(sections)
    preflight(recipe)  # what it imports late is imported now
    started = time.process_time()
    preflight(recipe)
    assert time.process_time() - started < 1
    assert list(tmp_path.iterdir()) == []
