"""Task names: the built-in IFEval, tasks of inspect_evals and of other packages, and tasks in Python files."""

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
# Increase it when the same responses would get other verdicts: cached results are then computed again.
IFEVAL_VERSION = "1"
INSPECT_EVALS = "inspect_evals"
# Prefixes of the metrics of held-out pairs.
RESERVED_LABELS = ("test", "length", "source")
RULE = "A task is ifeval, inspect_evals/<name>, <package>/<name> of an installed package, or <file>.py@<task>."

logger = logging.getLogger(__name__)


def resolve_all(names: Sequence[str]) -> tuple[str, ...]:
    """The full names of tasks that exist, without duplicates.

    ``inspect_evals/ifeval`` becomes the built-in ``ifeval`` when its checkers, which no package index has, are not
    installed: prompts, rules and metrics are the same. Raises EvaluationError for an unknown name, with the nearest
    one, and for a missing package, with the command that installs it.
    """
    tasks = tuple(dict.fromkeys(resolve(name) for name in names))
    check_labels(tasks)
    return tasks


def check_labels(tasks: Sequence[str]) -> None:
    """Raises EvaluationError for tasks whose metrics and logs would have the same names."""
    by_label = {label(name): name for name in tasks}
    for name in tasks:
        if label(name) in RESERVED_LABELS or (
            label(name) == IFEVAL and name not in (IFEVAL, f"{INSPECT_EVALS}/{IFEVAL}")
        ):
            found = f"The task {name} has the reserved name {label(name)}."
            raise EvaluationError(found, "A task's metrics are prefixed with its name.", "Rename the task.")
        if by_label[label(name)] != name:
            found = f"{name} and {by_label[label(name)]} have the same name {label(name)}."
            rule = "Metrics and logs are named after a task, without its package or file."
            raise EvaluationError(found, rule, "Rename one, or evaluate them separately.")


def resolve(name: str) -> str:
    """The full name of one task that exists.

    Raises EvaluationError as :func:`resolve_all` does.
    """
    if name == IFEVAL:
        return name
    if name == f"{INSPECT_EVALS}/{IFEVAL}" and not (
        find_spec(INSPECT_EVALS) and find_spec("instruction_following_eval")
    ):
        warn_builtin_ifeval()
        return IFEVAL
    path, _, task = name.partition("@")
    if path.endswith(".py"):
        return f"{Path(path).expanduser().resolve()}@{check_file(Path(path).expanduser(), task, name)}"
    package, slash, leaf = name.partition("/")
    if not slash or not leaf:
        raise unknown_task(
            name,
            [IFEVAL, f"{INSPECT_EVALS}/{IFEVAL}", *registered_tasks(INSPECT_EVALS)],
            f"inspect_evals' is {INSPECT_EVALS}/{name}.",
        )
    check_package(package, name)
    return name


@cache
def warn_builtin_ifeval() -> None:
    """Warn once per process that the built-in IFEval replaces the one of inspect_evals."""
    logger.warning(
        "%s/%s: its checkers (instruction_following_eval) are not installed; the built-in ifeval runs instead,"
        " with the same prompts, rules and metrics.",
        INSPECT_EVALS,
        IFEVAL,
    )


def check_package(package: str, name: str) -> None:
    """Raises EvaluationError when a task's package is not installed, or does not have the task."""
    if package == INSPECT_EVALS and not find_spec(INSPECT_EVALS):
        found = f"The task {name} needs the package inspect-evals, which is not installed."
        raise EvaluationError(found, RULE, "Install it: pip install inspect-evals")
    if package != INSPECT_EVALS and package not in {entry.name for entry in entry_points(group="inspect_ai")}:
        matches = close_matches(package, [INSPECT_EVALS], cutoff=0.6)
        remedy = f"Did you mean {matches[0]}/{name.partition('/')[2]}?" if matches else "Install it, or check the name."
        raise EvaluationError(f"No task package {package!r} is installed.", RULE, remedy)
    if package == INSPECT_EVALS and (names := registered_tasks(INSPECT_EVALS)) and name not in names:
        raise unknown_task(name, names)


def registered_tasks(package: str) -> list[str]:
    """Task names in the registry module of inspect_evals; an empty list when it is not installed.

    The module is parsed, not imported: its imports cost seconds.
    """
    spec = find_spec(package)
    registry = Path(spec.origin).with_name("_registry.py") if spec and spec.origin else None
    if registry is None or not registry.is_file():
        return []
    imports = [node for node in ast.walk(ast.parse(registry.read_text())) if isinstance(node, ast.ImportFrom)]
    return [f"{package}/{alias.asname or alias.name}" for node in imports for alias in node.names]


def check_file(path: Path, task: str, name: str) -> str:
    """The name of a task in a file; without ``task``, the file's only task.

    Raises EvaluationError when the file or the task does not exist, or no task is named and the file has several.
    """
    if not path.is_file():
        raise EvaluationError(f"There is no file {path} for the task {name}.", RULE, "Check the path.")
    try:
        tasks = file_tasks(path)
    except SyntaxError as error:
        raise EvaluationError(f"{path} is not Python: {error}.", RULE, "Fix the file.") from None
    if task and task not in tasks:
        raise unknown_task(name, [f"{name.partition('@')[0]}@{other}" for other in tasks])
    if not task and len(tasks) != 1:
        found = f"{path} has {len(tasks)} tasks{': ' if tasks else ''}{', '.join(tasks)}."
        raise EvaluationError(found, RULE, "Name one: a function with inspect-ai's decorator @task.")
    return task or tasks[0]


def file_tasks(path: Path) -> list[str]:
    """Names of the functions with the decorator ``@task`` in a Python file, which is parsed and not run."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [
        function.name
        for function in functions
        if any("task" in ast.unparse(decorator) for decorator in function.decorator_list)
    ]


def unknown_task(name: str, names: Iterable[str], otherwise: str = "Check the name.") -> EvaluationError:
    """The error for an unknown task name, with the nearest known names."""
    return EvaluationError(f"There is no task {name!r}.", RULE, did_you_mean(name, names, otherwise, most=3))


def cache_identity(name: str) -> list[str]:
    """A task's name and its version, for cache keys.

    The version is IFEVAL_VERSION, the installed package's version, or the digest of the task's file.
    """
    path = Path(name.partition("@")[0])
    if path.suffix == ".py":
        return [name.rpartition("/")[2], fingerprint.of_file(path)]
    return [name, IFEVAL_VERSION if name == IFEVAL else package_version(name.partition("/")[0])]


def package_version(package: str) -> str:
    """The installed version of a task package; an empty string when it is not installed."""
    versions = [entry.dist.version for entry in entry_points(group="inspect_ai", name=package) if entry.dist]
    return versions[0] if versions else ""


def label(name: str) -> str:
    """A task's short name, the prefix of its metrics."""
    return name.rpartition("@")[2].rpartition("/")[2].removesuffix(".py")
