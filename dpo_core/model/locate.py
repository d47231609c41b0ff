"""Model location: a local directory or the hub, and the fingerprints of weights and tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from dpo_core.cache import fingerprint
from dpo_core.data.readers.hub import HubRepository, resolve_commit
from dpo_core.errors import RecipeError
from dpo_core.records import ModelSource
from dpo_core.system.progress import ticking

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "added_tokens.json",
)
WEIGHT_FILES = ("*.safetensors", "config.json")
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
TOKENIZER_HUB_FILES = [*TOKENIZER_FILES, "config.json"]


@ticking("reading the weights for their fingerprint")
def describe(path: Path, name: str, final: Path | None = None, trust_remote_code: bool = False) -> ModelSource:
    """The record of the model directory ``path``; ``final``: the path that it will be moved to, if any.

    Raises RecipeError when configuration or tokenizer are missing, or the weights are not safetensors.
    """
    check_directory(path)
    weights = sorted(file for pattern in WEIGHT_FILES for file in path.glob(pattern))
    return ModelSource(
        path=final or path,
        name=name,
        fingerprint=fingerprint.of_files(weights, path),
        tokenizer_fingerprint=tokenizer_fingerprint(path),
        has_weights=any(path.glob("*.safetensors")),
        trust_remote_code=trust_remote_code,
    )


def tokenizer_source(name: str, revision: str | None, trust_remote_code: bool) -> ModelSource:
    """The record of a model's tokenizer without its weights, from a local directory or the hub.

    Raises RecipeError when there is none.
    """
    path = locate(name, revision, TOKENIZER_HUB_FILES)
    if not any(path.glob("tokenizer*.json")) and not any(path.glob("*.model")):
        raise RecipeError(f"{path} holds no tokenizer.", "A tokenizer is saved by save_pretrained.", "Check the path.")
    return ModelSource(
        path=path,
        name=name,
        fingerprint="",
        tokenizer_fingerprint=tokenizer_fingerprint(path),
        has_weights=False,
        trust_remote_code=trust_remote_code,
    )


def check_directory(path: Path) -> None:
    """Raises RecipeError unless the directory holds a configuration, a tokenizer and no pickled weights alone."""
    if not (path / "config.json").is_file():
        raise RecipeError(
            f"{path} holds no config.json.", "A model is a directory in transformers' format.", "Check the path."
        )
    if not any(path.glob("tokenizer*.json")) and not any(path.glob("*.model")):
        raise RecipeError(
            f"The model in {path} has no tokenizer.",
            "A model directory holds the tokenizer beside the weights.",
            "Save the tokenizer there (tokenizer.save_pretrained).",
        )
    if any(path.glob("*.bin")) and not any(path.glob("*.safetensors")):
        raise RecipeError(
            f"{path} holds pickled weights only.",
            "Weights are read from safetensors, never unpickled.",
            "Convert them: save_pretrained writes safetensors.",
        )


def tokenizer_fingerprint(path: Path) -> str:
    """Digest of the tokenizer's files."""
    files = sorted({file for pattern in TOKENIZER_FILES for file in path.glob(pattern) if file.is_file()})
    return fingerprint.of_files(files, path)


def locate(name: str, revision: str | None, files: Sequence[str] = HUB_FILES) -> Path:
    """The directory of a model: the local one of this name, else the hub model's ``files``, downloaded to its cache.

    Raises RecipeError when neither exists.
    """
    return local_directory(name) or download(name, revision, files)


def check_exists(name: str, revision: str | None) -> Path | None:
    """The local directory of this name; None for a model on the hub, which is not downloaded.

    Raises RecipeError when neither exists.
    """
    path = local_directory(name)
    if path is None:
        resolve_commit(hub_model(name, revision))
    return path


def local_directory(name: str) -> Path | None:
    """The local directory of this name, None where the name is a hub id.

    Raises RecipeError when the name is neither.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise RecipeError(
            f"There is no model directory {name}.",
            "model_name is a local directory or a hub id (owner/name).",
            "Check the path; the demo's model is model_name=demo with recipes/demo.toml.",
        )
    return None


def hub_model(name: str, revision: str | None) -> HubRepository:
    """The hub repository of a model."""
    return HubRepository("model", name, revision, "model_name=<local directory>")


def download(name: str, revision: str | None, files: Sequence[str]) -> Path:
    """The directory of a hub model's snapshot; from the local cache when the hub cannot be reached."""
    commit = resolve_commit(hub_model(name, revision))
    # Lazy: the hub's client costs half a second, which a local model does not need.
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=commit, allow_patterns=list(files)))
