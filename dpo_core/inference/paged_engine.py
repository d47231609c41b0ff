"""Paged engine: transformers' continuous batching over a paged KV cache, with CUDA graphs and flash attention."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import GenerationConfig

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import DecodedTokens, Decoding, OnFinished, evaluation_mode, token_limit
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.model import compat

# Seconds to wait for a result before checking that the generating thread is alive.
RESULT_TIMEOUT_S = 1.0
# Share of the free memory that the cache allocates at once, by device type.
MEMORY_SHARE = {"cuda": 0.8, "cpu": 0.1}
NO_TOKEN = -1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PagedEngine:
    """Greedy completions through the paged cache.

    ``fallback`` handles what transformers' continuous batching lacks (a random stream for each row, stop strings,
    scores under the model itself), and any prompts on which it failed.
    """

    fallback: TorchEngine
    name: ClassVar[EngineName] = "paged"

    @property
    def context_length(self) -> int | None:
        """The model's context length."""
        return self.fallback.context_length

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], on_finished: OnFinished
    ) -> None:
        """As in :class:`dpo_core.inference.torch_engine.Engine`."""
        remaining = set(range(len(prompts)))

        def finish(index: int, completion: DecodedTokens) -> None:
            remaining.discard(index)
            on_finished(index, completion)

        if is_supported(decoding):
            limits = {index: token_limit(self.context_length, prompt, decoding) for index, prompt in enumerate(prompts)}
            try:
                self.generate_paged(
                    prompts, {index: limit for index, limit in limits.items() if limit > 0}, decoding, finish
                )
            except Exception as error:  # noqa: BLE001 - the slower engine can still generate after any error
                logger.warning("Continuous batching failed; the torch engine generates the rest: %s", error)
        if remaining:
            indices = sorted(remaining)
            self.fallback.generate(
                [prompts[index] for index in indices],
                decoding,
                [streams[index] for index in indices],
                lambda position, completion: on_finished(indices[position], completion),
            )

    def generate_paged(
        self, prompts: Sequence[Sequence[int]], limits: Mapping[int, int], decoding: Decoding, on_finished: OnFinished
    ) -> None:
        """Complete the prompts that have a limit. Raises RuntimeError when the generating thread has died."""
        model, stops = self.fallback.model, sorted(decoding.stop_token_ids) or [NO_TOKEN]
        greedy = GenerationConfig(max_new_tokens=decoding.max_new_tokens, do_sample=False, eos_token_id=stops)  # type: ignore[no-untyped-call]
        config = compat.continuous_batching_config(model, decoding.batch_size, MEMORY_SHARE[model.device.type])
        with (
            evaluation_mode(model),
            model.continuous_batching_context_manager(greedy, continuous_batching_config=config) as manager,  # type: ignore[operator]
        ):
            for index, limit in limits.items():
                manager.add_request(list(prompts[index]), str(index), max_new_tokens=limit, eos_token_id=stops)
            waiting = len(limits)
            while waiting:
                result = manager.get_result(timeout=RESULT_TIMEOUT_S)
                decoding.on_step(0.0)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("its thread has ended")
                elif result.is_finished():
                    waiting -= 1
                    if result.error is None:
                        ids = tuple(result.generated_tokens)
                        on_finished(int(result.request_id), DecodedTokens(ids, ids[-1] in decoding.stop_token_ids))


def is_supported(decoding: Decoding) -> bool:
    """Whether transformers' continuous batching can decode in this way."""
    return decoding.temperature == 0 and not decoding.stop_strings and decoding.logprobs is None
