"""Which engine continues prompts, by name. Imports no torch, so that a wrong name is told before anything starts.

``torch``: our batches over a KV cache (:mod:`dpo_core.inference.decoding`), on any device. ``paged``: transformers'
continuous batching over a paged cache. ``vllm``: vLLM, where it is installed.
"""

from importlib.util import find_spec

from dpo_core.config.recipe import EngineName, EvaluateSettings
from dpo_core.errors import RecipeError

# The weights' type by compute type.
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def asked_for(settings: EvaluateSettings) -> EngineName:
    """The engine that the settings name; ``auto`` in an interpreter of its own is vLLM, on every device."""
    return "vllm" if settings.eval_python and settings.eval_engine == "auto" else settings.eval_engine


def check(name: EngineName) -> None:
    """Raises RecipeError for an engine that is not installed here."""
    if name == "vllm" and not find_spec("vllm"):
        raise RecipeError(
            "eval_engine=vllm, and vLLM is not installed.",
            "An engine is a package of its own.",
            "Install it (pip install vllm), name an environment that has it by eval_python, or set eval_engine=auto.",
        )


def choose(name: EngineName, device: str, precision: str) -> EngineName:
    """What ``auto`` stands for on this type of device.

    In float32 an answer must not depend on its neighbours, which only ours is held to; the others are for bf16 on a
    GPU, where what each step's calls cost is most of the time. Raises as :func:`check`.
    """
    check(name)
    if name != "auto":
        return name
    if device != "cuda" or precision != "bf16":
        return "torch"
    return "vllm" if find_spec("vllm") else "paged"
