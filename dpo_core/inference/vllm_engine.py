"""vLLM as an engine (Kwon et al., arXiv 2309.06180), for whoever has it installed; nothing here needs it before use."""

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import DecodedTokens, Decoding, Finished, room
from dpo_core.inference.sampling import TokenLogps
from dpo_core.inference.select_engine import DTYPES
from dpo_core.system.device import free_memory

# Of what is free, the part that weights and cache may take.
SHARE = {"cuda": 0.9, "cpu": 0.5}
# In this process: a stage that is killed leaves no other behind. And nobody is told what is evaluated here.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
MOST_ROWS = 512


class VLLMEngine:
    """A directory of whole weights, opened by vLLM in this process."""

    name: EngineName = "vllm"

    def __init__(
        self, path: Path, precision: str = "bf16", batch_size: int | None = None, trust_remote_code: bool = False
    ) -> None:
        """Load the weights, in bfloat16 or float32 as ``precision`` says; ``batch_size``: rows at a time at most.

        Raises whatever vLLM does about a model that it does not know or has no memory for.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # Lazy: an optional package, and seconds of imports.
        from vllm import EngineArgs, LLMEngine

        self.engine: Any = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(path),
                dtype=DTYPES[precision],
                max_model_len=-1,  # the model's own, or what there is memory for
                max_num_seqs=batch_size or MOST_ROWS,
                gpu_memory_utilization=share_of_memory(),
                generation_config="vllm",  # no defaults of the model's: what is asked for is what is done
                trust_remote_code=trust_remote_code,
                disable_log_stats=True,
                use_tqdm_on_load=False,
            )
        )
        self.numbers = itertools.count()

    @property
    def context(self) -> int | None:
        """How many tokens vLLM found room for, at most the model's own."""
        longest: int = self.engine.vllm_config.model_config.max_model_len
        return longest

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], finished: Finished
    ) -> None:
        """As :class:`dpo_core.inference.torch_engine.Engine` says."""
        waiting: dict[str, int] = {}
        for index, (prompt, stream) in enumerate(zip(prompts, streams, strict=True)):
            limit = room(self.context, prompt, decoding)
            if limit < 1:
                finished(index, DecodedTokens((), ended=False))
                continue
            number = str(next(self.numbers))
            waiting[number] = index
            self.engine.add_request(number, {"prompt_token_ids": list(prompt)}, wanted(decoding, limit, stream))
        try:
            while waiting:
                for output in self.engine.step():
                    if output.finished:
                        finished(waiting.pop(output.request_id), to_completion(output.outputs[0], decoding))
                decoding.on_step(0.0)
        finally:
            self.engine.abort_request(list(waiting))


def wanted(decoding: Decoding, limit: int, stream: str) -> Any:
    """How vLLM is to continue a prompt: a row's draws come from a seed of its own."""
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
        ignore_eos=True,  # only what the renderer says ends an answer
        detokenize=bool(decoding.stop_strings),
        skip_special_tokens=False,
        logprobs=decoding.logprobs,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def to_completion(output: Any, decoding: Decoding) -> DecodedTokens:
    """vLLM's output as ours."""
    ids = tuple(output.token_ids)
    scores = [
        TokenLogps(
            told[token].logprob, likeliest({other: one.logprob for other, one in told.items()}, decoding.logprobs)
        )
        for token, told in zip(ids, output.logprobs or [], strict=False)
    ]
    return DecodedTokens(ids, output.finish_reason == "stop", tuple(scores))


def likeliest(logps: dict[int, float], most: int | None) -> tuple[tuple[int, float], ...]:
    """So many of the likeliest tokens: vLLM tells of the chosen one too, wherever it stands."""
    return tuple(sorted(logps.items(), key=lambda told: -told[1])[: most or 0])


def share_of_memory() -> float:
    """The part of all memory that vLLM may take: others are on the device too, and it counts theirs as its own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
    else:
        import psutil  # lazy: as in :func:`free_memory`

        total = psutil.virtual_memory().total
    return SHARE[device.type] * free_memory(device) / total
