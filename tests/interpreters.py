"""Other environments for ``eval_python``, made here in a moment: a Python without pip, and packages in it."""

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

from dpo_core.system.python_environment import REQUIREMENTS

# Notes every process of the environment: its first arguments, a line each.
NOTE = """
import pathlib, sys
with (pathlib.Path(__file__).parent / "processes.txt").open("a") as notes:
    print(*sys.orig_argv[1:4], file=notes)
"""


def virtual(place: Path) -> Path:
    """The interpreter of an environment with no package at all."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    return place / "bin" / "python"


def packages_of(python: Path) -> Path:
    """Its site-packages."""
    [found] = (python.parent.parent / "lib").glob("python*/site-packages")
    return found


def install(python: Path, versions: Mapping[str, str]) -> None:
    """Packages that are there by name and version, and empty."""
    for module, version in versions.items():
        package = Requirement(REQUIREMENTS.get(module, module)).name
        (packages_of(python) / f"{module}.py").write_text("")
        information = packages_of(python) / f"{package.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def complete(place: Path) -> Path:
    """The interpreter of an environment in which all that generating needs seems to be, but vLLM."""
    python = virtual(place)
    bounds = {module: Requirement(requirement).specifier for module, requirement in REQUIREMENTS.items()}
    install(
        python,
        {module: next((one.version for one in told if one.operator == ">="), "1") for module, told in bounds.items()},
    )
    return python


def twin(place: Path) -> Path:
    """The interpreter of an environment with this one's packages, which notes its processes."""
    python = virtual(place)
    (packages_of(python) / "twin.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages_of(python) / "sitecustomize.py").write_text(NOTE)
    return python


def processes(python: Path) -> list[str]:
    """What a twin ran: the stages, by name."""
    notes = packages_of(python) / "processes.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [
        line.removeprefix("-m dpo_core.process.worker ")
        for line in lines
        if line.startswith("-m dpo_core.process.worker ")
    ]
