"""Engine loading: full weights, or LoRA adapters merged into their base, in the engine of an EngineConfig."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from dpo_core.config.recipe import EngineName
from dpo_core.errors import DPOError, EvaluationError
from dpo_core.inference.select_engine import DTYPES, choose_engine
from dpo_core.inference.torch_engine import Engine, TorchEngine
from dpo_core.model import adapter
from dpo_core.model.load import device, load_model
from dpo_core.model.locate import check_directory, describe, locate
from dpo_core.model.save_model import save_model
from dpo_core.stages.merge import MergeRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model generates: precision (fp32 or bf16), engine, and rows at a time (None: as many as fit into memory).

    The fields are also the arguments (``-M``) of inspect-ai's provider.
    """

    precision: str = "fp32"
    engine: EngineName = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False


class LoadedModel(NamedTuple):
    """A model, and the directory of its tokenizer."""

    model: PreTrainedModel
    tokenizer_path: Path


class LoadedEngine(NamedTuple):
    """An engine with a loaded model, and the directory of the model's tokenizer."""

    engine: Engine
    tokenizer_path: Path


def open_engine(path: Path, config: EngineConfig) -> LoadedEngine:
    """The model in a directory of full weights or LoRA adapters, in the engine of ``config``.

    Weights have the type of the precision. Raises RecipeError for a directory that is neither or an engine that is not
    installed, EvaluationError for an engine that ``config`` names and that does not start.
    """
    chosen = choose_engine(config.engine, device().type, config.precision)
    if chosen == "vllm":
        ready = start_vllm(path, config)
        if ready is not None:
            return ready
        chosen = "paged"
    model, tokenizer_path = load_full_model(path, DTYPES[config.precision], config.trust_remote_code)
    return LoadedEngine(build_engine(model, chosen, config.precision), tokenizer_path)


def build_engine(model: PreTrainedModel, chosen: EngineName, precision: str) -> Engine:
    """A loaded model in the torch or paged engine; in bf16 its weights are converted in place."""
    if precision == "bf16":
        model.to(torch.bfloat16)  # type: ignore[arg-type]
    if chosen != "paged":
        return TorchEngine(model, precision)
    # Lazy: a second of imports, which the torch engine does not need.
    from dpo_core.inference.paged_engine import PagedEngine

    return PagedEngine(TorchEngine(model, precision))


def start_vllm(path: Path, config: EngineConfig) -> LoadedEngine | None:
    """vLLM with the model loaded; None, with a warning, when it does not start and ``config`` does not name it.

    Raises EvaluationError when ``config`` names it and it does not start.
    """
    from dpo_core.inference.vllm_engine import VLLMEngine  # lazy: with the package that it wraps

    try:
        with full_weights(path, config) as (directory, tokenizer_path):
            engine = VLLMEngine(directory, config.precision, config.batch_size, config.trust_remote_code)
    except DPOError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if config.engine == "vllm":
            raise EvaluationError(
                f"vLLM does not start on {path}: {reason}.", "", "Set eval_engine=torch; --debug shows the traceback."
            ) from error
        logger.warning("vLLM does not start on %s (%s); using the paged engine instead.", path, reason)
        return None
    return LoadedEngine(engine, tokenizer_path)


@contextmanager
def full_weights(path: Path, config: EngineConfig) -> Iterator[tuple[Path, Path]]:
    """A directory of full weights and the tokenizer's directory; adapters are merged into a temporary directory."""
    if not adapter.is_adapter(path):
        check_directory(path)
        yield path, path
        return
    model, tokenizer_path = load_full_model(path, DTYPES[config.precision], config.trust_remote_code)
    with TemporaryDirectory() as directory:
        save_model(model, tokenizer_path, None, Path(directory) / "model")
        release_memory(model)
        yield Path(directory) / "model", tokenizer_path


def release_memory(model: PreTrainedModel) -> None:
    """Free the memory of a model's weights, even while references to the model exist."""
    model.to("meta")  # type: ignore[arg-type]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_full_model(path: Path, dtype: str = "float32", trust_remote_code: bool = False) -> LoadedModel:
    """The model in a directory of full weights, or of LoRA adapters merged into their base, with weights of ``dtype``.

    Raises RecipeError for a directory that is neither.
    """
    if not adapter.is_adapter(path):
        check_directory(path)
        return LoadedModel(load_model(path, trust_remote_code=trust_remote_code, dtype=dtype), path)
    # Lazy: peft costs seconds, and a served model is installed without it.
    from dpo_core.model.lora import merge_adapters
    from dpo_core.model.merge import load_adapters

    adapter.check_weights(path)
    name = adapter.base_model_name(path)
    base = describe(locate(name, None), name)
    adapter.check_base_fingerprint(path, base.fingerprint, name)
    request = MergeRequest(base=base, adapter=path, name=name)
    model = load_model(base.path, trust_remote_code=trust_remote_code)
    return LoadedModel(merge_adapters(load_adapters(model, request)).to(getattr(torch, dtype)).eval(), base.path)
