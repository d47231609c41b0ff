"""Import check: a stage that imports the generation modules in the generating interpreter, before training."""

import importlib
import sys

from dpo_core.cache.store import Draft
from dpo_core.errors import EvaluationError
from dpo_core.records import Imports
from dpo_core.stages.evaluation.check_imports import ImportsRequest
from dpo_core.system import gc_tuning

MODULES = ("dpo_core.evaluate.run_task", "dpo_core.evaluate.generate")
VLLM = ("LLMEngine", "EngineArgs", "SamplingParams")


def run(request: ImportsRequest, draft: Draft) -> None:
    """Import every module that generation needs; publish Imports.

    Raises EvaluationError when an import fails, with the root cause.
    """
    try:
        with gc_tuning.paused():
            for module in MODULES:
                importlib.import_module(module)
            importlib.import_module("dpo_core.evaluate.ifeval.ifeval_checkers").official_checkers()
            if request.engine == "vllm":
                vllm = importlib.import_module("vllm")
                for name in VLLM:  # vllm imports each on first access
                    getattr(vllm, name)
    except Exception as error:
        raise import_error(error) from error
    draft.publish(Imports(path=draft.final, python=sys.version.split()[0]))


def import_error(error: BaseException) -> EvaluationError:
    """The error for an environment with incompatible or missing packages."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return EvaluationError(
        f"{sys.executable} cannot import the generation modules: {type(error).__name__}: {reason.rstrip('.')}.",
        "All of them must import before training starts.",
        "Its packages are incompatible: create a working environment with the commands in docs/vllm.md.",
    )
