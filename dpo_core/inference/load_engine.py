"""Models ready to be used: the weights of a directory, or of adapters added into the model that they name."""

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
from dpo_core.inference.select_engine import DTYPES, choose
from dpo_core.inference.torch_engine import Engine, TorchEngine
from dpo_core.model import adapter
from dpo_core.model.load import device, load_model
from dpo_core.model.locate import check_directory, describe, locate
from dpo_core.model.save_model import save_model
from dpo_core.stages.merge import MergeRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How a model is to generate: its compute type, its engine, and rows at a time (None: from memory)."""

    precision: str = "fp32"
    engine: EngineName = "auto"
    batch_size: int | None = None
    trust_remote_code: bool = False


class LoadedModel(NamedTuple):
    """A model, and where its tokenizer is."""

    model: PreTrainedModel
    tokenizer_path: Path


class LoadedEngine(NamedTuple):
    """An engine with a model in it, and where the model's tokenizer is."""

    engine: Engine
    tokenizer_path: Path


def open_engine(path: Path, how: EngineConfig) -> LoadedEngine:
    """The model in a directory of weights, or of LoRA adapters, in the engine that is asked for.

    Weights are of the compute type. Raises RecipeError for a directory that is neither or an engine that is not
    installed, EvaluationError for one that is asked for by name and does not start.
    """
    chosen = choose(how.engine, device().type, how.precision)
    if chosen == "vllm":
        ready = started(path, how)
        if ready is not None:
            return ready
        chosen = "paged"
    model, tokenizer_path = open_weights(path, DTYPES[how.precision], how.trust_remote_code)
    return LoadedEngine(engine_of(model, chosen, how.precision), tokenizer_path)


def engine_of(model: PreTrainedModel, chosen: EngineName, precision: str) -> Engine:
    """An open model in an engine on torch; in bf16 its weights become bfloat16, as :func:`open_engine` has them."""
    if precision == "bf16":
        model.to(torch.bfloat16)  # type: ignore[arg-type]
    if chosen != "paged":
        return TorchEngine(model, precision)
    # Lazy: a second of imports, which our own batches need not pay.
    from dpo_core.inference.paged_engine import PagedEngine

    return PagedEngine(TorchEngine(model, precision))


def started(path: Path, how: EngineConfig) -> LoadedEngine | None:
    """vLLM with the model in it; None, with a warning, where nobody asked for it by name and it does not start.

    Raises EvaluationError where it was asked for.
    """
    from dpo_core.inference.vllm_engine import VLLMEngine  # lazy: with the package that it wraps

    try:
        with whole(path, how) as (directory, tokenizer_path):
            engine = VLLMEngine(directory, how.precision, how.batch_size, how.trust_remote_code)
    except DPOError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if how.engine == "vllm":
            raise EvaluationError(
                f"vLLM does not start on {path}: {reason}.", "", "Set eval_engine=torch, or see --debug."
            ) from error
        logger.warning("vLLM does not start on %s (%s); transformers' continuous batching generates.", path, reason)
        return None
    return LoadedEngine(engine, tokenizer_path)


@contextmanager
def whole(path: Path, how: EngineConfig) -> Iterator[tuple[Path, Path]]:
    """A directory of whole weights, adapters added in, for as long as they are read; and where the tokenizer is."""
    if not adapter.is_adapter(path):
        check_directory(path)
        yield path, path
        return
    model, tokenizer_path = open_weights(path, DTYPES[how.precision], how.trust_remote_code)
    with TemporaryDirectory() as place:
        save_model(model, tokenizer_path, None, Path(place) / "model")
        release(model)
        yield Path(place) / "model", tokenizer_path


def release(model: PreTrainedModel) -> None:
    """Give a model's memory back, whoever still holds the model."""
    model.to("meta")  # type: ignore[arg-type]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_weights(path: Path, dtype: str = "float32", trust_remote_code: bool = False) -> LoadedModel:
    """The model in a directory of weights, or of LoRA adapters, in this type.

    Raises RecipeError for a directory that is neither.
    """
    if not adapter.is_adapter(path):
        check_directory(path)
        return LoadedModel(load_model(path, trust_remote_code=trust_remote_code, dtype=dtype), path)
    # Lazy: peft costs seconds, and a served model is installed without it.
    from dpo_core.model.lora import merged
    from dpo_core.model.merge import adapted

    adapter.check_weights(path)
    name = adapter.base_name(path)
    base = describe(locate(name, None), name)
    adapter.check_base(path, base.fingerprint, name)
    request = MergeRequest(base=base, adapter=path, name=name)
    model = load_model(base.path, trust_remote_code=trust_remote_code)
    return LoadedModel(merged(adapted(model, request)).to(getattr(torch, dtype)).eval(), base.path)
