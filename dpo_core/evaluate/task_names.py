"""What can be asked of a model, by name: our own IFEval, inspect_evals' tasks, other packages', and files of tasks."""

import ast
import logging
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from dpo_core.cache import fingerprint
from dpo_core.config.spelling import close_matches, did_you_mean
from dpo_core.errors import EvaluationError

IFEVAL = "ifeval"
# Raise it when the same answers would get other verdicts: what was measured before is then measured again.
IFEVAL_VERSION = "1"
EVALS = "inspect_evals"
# What the metrics of held-out pairs stand under.
TAKEN = ("test", "length", "source")
RULE = "A task is ifeval, inspect_evals/<name>, <package>/<name> of an installed package, or <file>.py@<task>."

logger = logging.getLogger(__name__)


def settle(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks of these names, each once, known to be there.

    ``inspect_evals/ifeval`` is our own wherever the checkers that it imports, which no package index has, are missing:
    prompts, rules and metrics are the same. Raises EvaluationError for a name that is no task's, with the nearest one,
    or for a package that is missing, with what installs it.
    """
    tasks = tuple(dict.fromkeys(settled(name) for name in names))
    check_labels(tasks)
    return tasks


def check_labels(tasks: Sequence[str]) -> None:
    """Raises EvaluationError for tasks whose metrics and logs could not be told apart."""
    short = {label(name): name for name in tasks}
    for name in tasks:
        if label(name) in TAKEN or (label(name) == IFEVAL and name not in (IFEVAL, f"{EVALS}/{IFEVAL}")):
            found = f"The task {name} is called {label(name)}, as measures of our own are."
            raise EvaluationError(found, "A task's metrics stand under its name.", "Rename it.")
        if short[label(name)] != name:
            found = f"{name} and {short[label(name)]} have the same name {label(name)}."
            rule = "Metrics and logs are told apart by a task's name without its package or file."
            raise EvaluationError(found, rule, "Rename one, or measure them apart.")


def settled(name: str) -> str:
    """One task's name, checked."""
    if name == IFEVAL:
        return name
    if name == f"{EVALS}/{IFEVAL}" and not (find_spec(EVALS) and find_spec("instruction_following_eval")):
        say_that_ours_runs()
        return IFEVAL
    path, _, task = name.partition("@")
    if path.endswith(".py"):
        return f"{Path(path).expanduser().resolve()}@{check_file(Path(path).expanduser(), task, name)}"
    package, slash, leaf = name.partition("/")
    if not slash or not leaf:
        raise unknown(name, [IFEVAL, f"{EVALS}/{IFEVAL}", *known(EVALS)], f"inspect_evals' is {EVALS}/{name}.")
    check_package(package, name)
    return name


@cache
def say_that_ours_runs() -> None:
    """Once a process: what is asked for is not what runs."""
    logger.warning(
        "%s/%s: its checkers (instruction_following_eval) are not installed; the built-in ifeval runs,"
        " with the same prompts, rules and metrics.",
        EVALS,
        IFEVAL,
    )


def check_package(package: str, name: str) -> None:
    """Raises EvaluationError when a task's package is not installed, or has no task of this name."""
    if package == EVALS and not find_spec(EVALS):
        found = f"The task {name} needs the package inspect-evals, which is not installed."
        raise EvaluationError(found, RULE, "Install it: pip install inspect-evals")
    if package != EVALS and package not in {entry.name for entry in entry_points(group="inspect_ai")}:
        near = close_matches(package, [EVALS], cutoff=0.6)
        remedy = f"Did you mean {near[0]}/{name.partition('/')[2]}?" if near else "Install it, or check the name."
        raise EvaluationError(f"There is no package of tasks {package!r} here.", RULE, remedy)
    if package == EVALS and (names := known(EVALS)) and name not in names:
        raise unknown(name, names)


def known(package: str) -> list[str]:
    """The tasks of inspect_evals, which registers them all in one module; none when it is not installed."""
    spec = find_spec(package)
    registry = Path(spec.origin).with_name("_registry.py") if spec and spec.origin else None
    if registry is None or not registry.is_file():
        return []
    imports = [node for node in ast.walk(ast.parse(registry.read_text())) if isinstance(node, ast.ImportFrom)]
    return [f"{package}/{alias.asname or alias.name}" for node in imports for alias in node.names]


def check_file(path: Path, task: str, name: str) -> str:
    """The task of a file by its name, or without a name the only one.

    Raises EvaluationError unless file and task are there.
    """
    if not path.is_file():
        raise EvaluationError(f"There is no file {path} for the task {name}.", RULE, "Check the path.")
    try:
        tasks = tasks_of(path)
    except SyntaxError as error:
        raise EvaluationError(f"{path} is not Python: {error}.", RULE, "Mend the file.") from None
    if task and task not in tasks:
        raise unknown(name, [f"{name.partition('@')[0]}@{other}" for other in tasks])
    if not task and len(tasks) != 1:
        found = f"{path} has {len(tasks)} tasks{': ' if tasks else ''}{', '.join(tasks)}."
        raise EvaluationError(found, RULE, "Name one: a function with inspect-ai's decorator @task.")
    return task or tasks[0]


def tasks_of(path: Path) -> list[str]:
    """The functions of a file that are decorated as tasks; it is not run."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [one.name for one in functions if any("task" in ast.unparse(mark) for mark in one.decorator_list)]


def unknown(name: str, names: Iterable[str], otherwise: str = "Check the name.") -> EvaluationError:
    """The error for a name that is no task's."""
    return EvaluationError(f"There is no task {name!r}.", RULE, did_you_mean(name, names, otherwise, most=3))


def identity(name: str) -> list[str]:
    """What a task is: its name, and its own version, its package's, or the content of its file."""
    path = Path(name.partition("@")[0])
    if path.suffix == ".py":
        return [name.rpartition("/")[2], fingerprint.of_file(path)]
    return [name, IFEVAL_VERSION if name == IFEVAL else package_version(name.partition("/")[0])]


def package_version(package: str) -> str:
    """The installed version of a package of tasks."""
    found = [entry.dist.version for entry in entry_points(group="inspect_ai", name=package) if entry.dist]
    return found[0] if found else ""


def label(name: str) -> str:
    """A task's short name, as metrics have it before their own."""
    return name.rpartition("@")[2].rpartition("/")[2].removesuffix(".py")
