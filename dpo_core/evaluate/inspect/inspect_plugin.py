"""inspect-ai plugin, found through an entry point: the model provider ``dpo``, the IFEval task and its scorer."""

from inspect_ai.model import ModelAPI, modelapi

from dpo_core.evaluate.ifeval.ifeval_task import ifeval, instruction_following

__all__ = ["dpo", "ifeval", "instruction_following"]


@modelapi(name="dpo")
def dpo() -> type[ModelAPI]:
    """Model provider for transformers directories: ``--model dpo/<directory>``."""
    # Lazy: torch and transformers cost 4 s, which every other use of inspect-ai in this environment need not pay.
    from dpo_core.evaluate.inspect.provider import DPOModel

    return DPOModel
