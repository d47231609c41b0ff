"""vLLM engine (Kwon et al., arXiv 2309.06180). vLLM is optional and imported when the engine is created."""

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import DecodedTokens, Decoding, OnFinished, token_limit
from dpo_core.inference.sampling import LogProb, TokenLogps
from dpo_core.inference.select_engine import DTYPES
from dpo_core.system.device import free_memory

# Share of the free memory that weights and cache may take, by device type.
MEMORY_SHARE = {"cuda": 0.9, "cpu": 0.5}
# In one process, so that a killed stage leaves no orphan behind; and without usage statistics sent to vLLM.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
MAX_ROWS = 512


class VLLMEngine:
    """A directory of full weights, loaded by vLLM in this process."""

    name: EngineName = "vllm"

    def __init__(
        self, path: Path, precision: str = "bf16", batch_size: int | None = None, trust_remote_code: bool = False
    ) -> None:
        """Load the weights in the type of ``precision``; ``batch_size``: most rows at a time.

        Raises vLLM's own errors for a model that it does not support or that does not fit into memory.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Lazy: an optional package, and seconds of imports.
        from vllm import EngineArgs, LLMEngine

        self.engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(path),
                dtype=DTYPES[precision],
                max_model_len=-1,  # the model's own, or as much as memory allows
                max_num_seqs=batch_size or MAX_ROWS,
                gpu_memory_utilization=gpu_memory_utilization(),
                generation_config="vllm",  # the model's own sampling defaults must not change the recipe's
                trust_remote_code=trust_remote_code,
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )
        )
        self.request_numbers = itertools.count()

    @property
    def context_length(self) -> int | None:
        """Tokens that fit into vLLM's memory, at most the model's own context length."""
        longest: int = self.engine.vllm_config.model_config.max_model_len
        return longest

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], on_finished: OnFinished
    ) -> None:
        """As in :class:`dpo_core.inference.torch_engine.Engine`."""
        waiting: dict[str, int] = {}
        for index, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            limit = token_limit(self.context_length, prompt, decoding)
            if limit < 1:
                on_finished(index, DecodedTokens((), ended=False))
                continue
            request_id, params = str(next(self.request_numbers)), sampling_params(decoding, limit, stream)
            waiting[request_id] = index
            self.engine.add_request(request_id, {"prompt_token_ids": list(prompt)}, params)
        try:
            while waiting:
                for output in self.engine.step():
                    if output.finished:
                        on_finished(waiting.pop(output.request_id), to_decoded_tokens(output.outputs[0], decoding))
                decoding.on_step(0.0)
        finally:
            self.engine.abort_request(list(waiting))


def sampling_params(decoding: Decoding, limit: int, stream: str) -> Any:
    """vLLM's SamplingParams for one prompt; seed and ``stream`` give the row a seed of its own."""
    from vllm import SamplingParams  # lazy: as above
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=limit,
        temperature=decoding.temperature,
        top_k=decoding.top_k or 0,
        top_p=1.0 if decoding.top_p is None else decoding.top_p,
        seed=random.Random(f"{decoding.seed}/{stream}").getrandbits(31) if decoding.temperature else None,
        stop=list(decoding.stop_strings),
        include_stop_str_in_output=True,
        stop_token_ids=sorted(decoding.stop_token_ids),
        ignore_eos=True,  # only the renderer's markers end a response
        detokenize=bool(decoding.stop_strings),
        skip_special_tokens=False,
        logprobs=decoding.logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def to_decoded_tokens(output: Any, decoding: Decoding) -> DecodedTokens:
    """vLLM's CompletionOutput as DecodedTokens."""
    ids = tuple(output.token_ids)
    scores = []
    for token, logprobs in zip(ids, output.logprobs or [], strict=False):
        logps = {candidate: logprob.logprob for candidate, logprob in logprobs.items()}
        scores.append(TokenLogps(logps[token], top_logps(logps, decoding.logprobs)))
    return DecodedTokens(ids, output.finish_reason == "stop", tuple(scores))


def top_logps(logps: dict[int, float], count: int | None) -> tuple[LogProb, ...]:
    """The ``count`` likeliest tokens, likeliest first: vLLM adds the sampled token to them, whatever its rank."""
    return tuple(sorted(logps.items(), key=lambda item: -item[1])[: count or 0])


def gpu_memory_utilization() -> float:
    """The share of the device's total memory that vLLM may use.

    vLLM counts the memory of other processes as its own, so the share is taken from the free memory.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
    else:
        import psutil  # lazy: as in :func:`free_memory`

        total = psutil.virtual_memory().total
    return MEMORY_SHARE[device.type] * free_memory(device) / total
