"""Virtual environments for tests of ``eval_python``: without pip, with empty packages or with this one's packages."""

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

from dpo_core.system.python_environment import REQUIREMENTS

# Writes a line for every process of the environment: its first arguments.
NOTE = """
import pathlib, sys
with (pathlib.Path(__file__).parent / "processes.txt").open("a") as notes:
    print(*sys.orig_argv[1:4], file=notes)
"""


def make_venv(directory: Path) -> Path:
    """Create an environment without packages; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    return directory / "bin" / "python"


def site_packages(python: Path) -> Path:
    """The directory of an interpreter's packages."""
    [found] = (python.parent.parent / "lib").glob("python*/site-packages")
    return found


def install(python: Path, versions: Mapping[str, str]) -> None:
    """Install empty packages with these versions."""
    for module, version in versions.items():
        package = Requirement(REQUIREMENTS.get(module, module)).name
        (site_packages(python) / f"{module}.py").write_text("")
        dist_info = site_packages(python) / f"{package.replace('-', '_')}-{version}.dist-info"
        dist_info.mkdir()
        (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def complete(directory: Path) -> Path:
    """Create an environment with empty packages for all requirements but vLLM; returns its interpreter."""
    python = make_venv(directory)
    bounds = {module: Requirement(requirement).specifier for module, requirement in REQUIREMENTS.items()}
    install(
        python,
        {
            module: next((specifier.version for specifier in specifiers if specifier.operator == ">="), "1")
            for module, specifiers in bounds.items()
        },
    )
    return python


def twin(directory: Path) -> Path:
    """Create an environment with this one's packages that records its processes; returns its interpreter."""
    python = make_venv(directory)
    (site_packages(python) / "twin.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site_packages(python) / "sitecustomize.py").write_text(NOTE)
    return python


def processes(python: Path) -> list[str]:
    """Names of the stages that ran in a :func:`twin` environment."""
    notes = site_packages(python) / "processes.txt"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return [
        line.removeprefix("-m dpo_core.process.worker ")
        for line in lines
        if line.startswith("-m dpo_core.process.worker ")
    ]
