"""The documents: every link, path, module, command and setting that they show exists, and README is short."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import click
import pytest

from deployments.__main__ import cli as deployments_cli
from dpo_core.__main__ import COMMANDS
from dpo_core.cli.eval_command import command_line
from dpo_core.config.settings import assignments, read_recipe, split_recipe_file
from flows.cli.main import cli
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_WORDS = 800
PACKAGES = "dpo_core|flows|deployments"
REPOSITORY_PATH = re.compile(rf"(?:{PACKAGES}|recipes|benchmarks|tests|docs|mlruns|\.ci)/[\w./-]*")
MODULE = re.compile(rf"(?:{PACKAGES})(?:\.\w+)+")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*((?:dpo|python3? -m|make) .*)")
BANNED = re.compile(r"\b(river|course|told|asked|known as|whoever|anybody)\b", re.IGNORECASE)
REFUSED = "learning_rat=1"  # what a page shows as a misspelt setting

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(page: Path) -> str:
    """The text without its code blocks."""
    return INDENTED.sub("", FENCED.sub("", page.read_text()))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> Iterator[str]:
    """Lines of code blocks that start ``dpo``, a Python module or make."""
    text = page.read_text()
    blocks = "\n".join(body for language, body in FENCED.findall(text) if language != "python")
    for line in [*INDENTED.findall(FENCED.sub("", text)), *blocks.splitlines()]:
        if match := COMMAND.fullmatch(line):
            yield match[1]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def names_in(module: str) -> set[str]:
    """The names at the top of a module, read and not imported."""
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    nodes = ast.parse(Path(spec.origin).read_text()).body
    named = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return named | {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "LAB.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for path, _, anchor in (link.partition("#") for link in links if "://" not in link):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@every_page
def test_paths_and_modules_exist(page: Path) -> None:
    code = inline_code(page)
    assert [path for path in code if REPOSITORY_PATH.fullmatch(path) and not (ROOT / path).exists()] == []
    for name in (match[0] for text in code if (match := MODULE.match(text))):
        module, _, attribute = name.rpartition(".")
        assert find_spec(module) is not None, name
        assert attribute in names_in(module) or find_spec(name) is not None, name


@every_page
def test_imports_of_python_examples_exist(page: Path) -> None:
    examples = [body for language, body in FENCED.findall(page.read_text()) if language == "python"]
    for node in (node for body in examples for node in ast.walk(ast.parse(body))):
        if isinstance(node, ast.ImportFrom) and MODULE.match(node.module or ""):
            assert {alias.name for alias in node.names} <= names_in(node.module or "")


def test_the_annotated_tree_is_the_tree() -> None:
    (tree,) = (body for _, body in FENCED.findall((ROOT / "README.md").read_text()) if body.startswith("dpo_core/"))
    package = ROOT
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if not line.startswith(" "):
            package = ROOT / names[0]
            names = ["."]
        assert [name for name in names if not (package / name).exists()] == []


@every_page
def test_settings_in_prose_are_settings(page: Path) -> None:
    for word in inline_code(page):
        if re.match(r"[a-z][a-z_.]*=[^=]", word) and word != REFUSED and "value" not in word:
            read_recipe(None, [word], {})


@every_page
def test_commands_parse(page: Path) -> None:
    for command in [*commands(page), *(text for text in inline_code(page) if text.startswith(("make ", "python -m")))]:
        check_command([word for word in shlex.split(command, comments=True) if word != "…"])
    for words in (text.split() for text in inline_code(page) if text.startswith("dpo ")):
        assert words[1] in cli.commands, words


def check_command(words: list[str]) -> None:
    """Raises for a target, module, command, option or setting that does not exist."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), words
    elif words[0] == "dpo":
        check_words(words[1], words[2:])
    else:
        assert find_spec(words[2]) is not None, words
        if words[2] == "dpo_core":
            assert {*words[3:4]} <= {*COMMANDS, "STAGE"}, words


def check_words(name: str, words: list[str]) -> None:
    """Parse the words of a ``dpo`` command as the command does, and read its settings."""
    assert name in cli.commands, name
    command = {**deployments_cli.commands, "eval": command_line}.get(name, cli.commands[name])
    if name == "eval":
        command.main(words, standalone_mode=False)
        return
    context: click.Context = command.make_context(name, words)
    file, settings = split_recipe_file(context.params.get("words", ()))
    recipe_file = file and (ROOT / file if (ROOT / file).is_file() else None)
    if name == "sweep":
        for values in product(*([f"{leaf}={one}" for one in many.split(",")] for leaf, many in assignments(settings))):
            read_recipe(recipe_file, values, {})
    elif name == "data":
        read_recipe(None, [word for word in settings if "=" in word], {})
    elif name != "generate":
        read_recipe(recipe_file, settings, {})


@every_page
def test_words_are_plain(page: Path) -> None:
    assert BANNED.findall(prose(page)) == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS
