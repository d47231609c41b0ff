"""Stage that imports what generating needs, in the interpreter that will generate, before anything is trained."""

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
    """Import everything once; publish Imports.

    Raises EvaluationError for what does not import, with the first cause.
    """
    try:
        with gc_tuning.paused():
            for module in MODULES:
                importlib.import_module(module)
            importlib.import_module("dpo_core.evaluate.ifeval.ifeval_checkers").registry()
            if request.engine == "vllm":
                vllm = importlib.import_module("vllm")
                for name in VLLM:  # it imports each when it is first asked for
                    getattr(vllm, name)
    except Exception as error:
        raise refused(error) from error
    draft.publish(Imports(path=draft.final, python=sys.version.split()[0]))


def refused(error: BaseException) -> EvaluationError:
    """The error for an environment whose packages do not fit each other."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
    return EvaluationError(
        f"{sys.executable} cannot import what generating needs: {type(error).__name__}: {reason.rstrip('.')}.",
        "Everything is imported there once, before anything is trained.",
        "Its packages do not fit each other: docs/vllm.md has commands that make an environment that works.",
    )
