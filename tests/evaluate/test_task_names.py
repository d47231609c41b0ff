"""Task names: existing tasks are resolved, errors name the nearest task or the command to install it."""

import importlib.machinery
from pathlib import Path

import pytest

from dpo_core.errors import EvaluationError
from dpo_core.evaluate import task_names
from dpo_core.evaluate.task_names import cache_identity, label, resolve_all

FILE = """
from inspect_ai import Task, task

@task
def capitals():
    return Task()

@task(name="rivers")
def rivers():
    return Task()

def other():
    raise SystemExit
"""


@pytest.fixture
def geography(tmp_path: Path) -> Path:
    path = tmp_path / "geography.py"
    path.write_text(FILE)
    return path


def test_inspect_evals_ifeval_becomes_the_built_in_task_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The checkers of inspect_evals/ifeval are in no package index; without them the built-in task runs."""
    task_names.warn_builtin_ifeval.cache_clear()
    assert resolve_all(("inspect_evals/ifeval", "ifeval")) == resolve_all(("inspect_evals/ifeval",)) == ("ifeval",)
    assert caplog.text.count("the built-in ifeval runs") == 1


def test_tasks_of_files_are_found_without_running_them(geography: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(geography.parent)
    assert resolve_all(("geography.py@rivers",)) == (f"{geography}@rivers",)
    assert label(f"{geography}@rivers") == "rivers"
    before = cache_identity(f"{geography}@rivers")
    geography.write_text(FILE + "\n")
    assert cache_identity(f"{geography}@rivers") != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ifevall", r"no task 'ifevall'.*Did you mean ifeval"),
        ("gsm8k", r"no task 'gsm8k'.*inspect_evals' is inspect_evals/gsm8k"),
        ("{file}@capital", r"Did you mean .*geography\.py@capitals "),
        ("{file}", r"has 2 tasks: capitals, rivers"),
        ("missing.py@x", r"no file missing\.py"),
        ("inspect_eval/gsm8k", r"Did you mean inspect_evals/gsm8k\?"),
    ],
)
def test_unknown_tasks_are_errors_with_the_nearest_name(name: str, message: str, geography: Path) -> None:
    with pytest.raises(EvaluationError, match=message):
        resolve_all((name.format(file=geography),))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("{0}/geography.py@capitals", "{0}/other.py@capitals"), "have the same name capitals"),
        (("ifeval", "{0}/other.py@ifeval"), "have the same name ifeval"),
        (("{0}/other.py@ifeval",), "has the reserved name ifeval"),
        (("{0}/other.py@test",), "has the reserved name test"),
    ],
)
def test_duplicate_and_reserved_names_are_rejected(names: tuple[str, ...], message: str, geography: Path) -> None:
    more = "".join(f"\n@task\ndef {name}():\n    return Task()\n" for name in ("ifeval", "test"))
    (geography.parent / "other.py").write_text(FILE + more)
    with pytest.raises(EvaluationError, match=message):
        resolve_all([name.format(geography.parent) for name in names])


def test_error_of_a_missing_package_has_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_names, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="pip install inspect-evals"):
        resolve_all(("inspect_evals/gsm8k",))


def test_an_installed_package_names_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake package lists its tasks as inspect_evals does: as imports in its registry module."""
    package = tmp_path / "inspect_evals"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_registry.py").write_text("from inspect_evals.gsm8k import gsm8k\nfrom .arc import arc_easy as arc\n")
    spec = importlib.machinery.ModuleSpec("inspect_evals", None, origin=str(package / "__init__.py"))
    monkeypatch.setattr(task_names, "find_spec", lambda name: spec if name == "inspect_evals" else None)
    assert resolve_all(("inspect_evals/gsm8k",)) == ("inspect_evals/gsm8k",)
    with pytest.raises(EvaluationError, match=r"Did you mean inspect_evals/gsm8k "):
        resolve_all(("inspect_evals/gsm8",))
