"""Tokenizer loading from a model's directory."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dpo_core.errors import RecipeError


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in ``path``.

    Raises RecipeError when it does not load.
    """
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"The tokenizer in {path} does not load: {str(error).splitlines()[0]}.",
            "A model directory has the tokenizer beside the weights.",
            "Save the tokenizer there (tokenizer.save_pretrained).",
        ) from error
