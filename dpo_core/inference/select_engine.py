"""Engine selection by name. Imports no torch, so that a wrong name is reported before any work starts.

``torch``: our batches over a KV cache (:mod:`dpo_core.inference.decoding`), on any device. ``paged``: transformers'
continuous batching over a paged cache. ``vllm``: vLLM, where it is installed.
"""

from importlib.util import find_spec

from dpo_core.config.recipe import EngineName, EvaluateSettings
from dpo_core.errors import RecipeError

# Torch type of the weights by precision.
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def configured_engine(settings: EvaluateSettings) -> EngineName:
    """The engine that the settings name; with ``eval_python``, ``auto`` is vLLM on every device."""
    return "vllm" if settings.eval_python and settings.eval_engine == "auto" else settings.eval_engine


def check_installed(name: EngineName) -> None:
    """Raises RecipeError when the engine is not installed in this environment."""
    if name == "vllm" and not find_spec("vllm"):
        raise RecipeError(
            "eval_engine=vllm, and vLLM is not installed.",
            "vLLM is an optional package.",
            "Install it (pip install vllm), name an environment that has it by eval_python, or set eval_engine=auto.",
        )


def choose_engine(name: EngineName, device: str, precision: str) -> EngineName:
    """The engine to use on this device type; resolves ``auto``.

    In float32 a response must not depend on its neighbors, which only the torch engine guarantees. The other engines
    are for bf16 on a GPU, where the overhead of each step's calls is most of the time. Raises as
    :func:`check_installed`.
    """
    check_installed(name)
    if name != "auto":
        return name
    if device != "cuda" or precision != "bf16":
        return "torch"
    return "vllm" if find_spec("vllm") else "paged"
