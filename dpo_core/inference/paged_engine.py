"""transformers' continuous batching over a paged cache: CUDA graphs, and flash attention where it is installed."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import GenerationConfig

from dpo_core.config.recipe import EngineName
from dpo_core.inference.decoding import DecodedTokens, Decoding, Finished, evaluating, room
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.model import compat

# Seconds of silence after which the thread that generates is looked at.
PATIENCE = 1.0
# Of what is free, the part that it takes, all of it at once.
SHARE = {"cuda": 0.8, "cpu": 0.1}
NO_TOKEN = -1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PagedEngine:
    """Greedy answers in pages.

    ``otherwise`` does what transformers' continuous batching has not (draws from a row's own stream, stop strings,
    scores under the model itself), and whatever it failed at.
    """

    otherwise: TorchEngine
    name: ClassVar[EngineName] = "paged"

    @property
    def context(self) -> int | None:
        """The model's."""
        return self.otherwise.context

    def generate(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, streams: Sequence[str], finished: Finished
    ) -> None:
        """As :class:`dpo_core.inference.torch_engine.Engine` says."""
        left = set(range(len(prompts)))

        def done(index: int, completion: DecodedTokens) -> None:
            left.discard(index)
            finished(index, completion)

        if suits(decoding):
            limits = {index: room(self.context, prompt, decoding) for index, prompt in enumerate(prompts)}
            try:
                self.in_pages(prompts, {index: limit for index, limit in limits.items() if limit > 0}, decoding, done)
            except Exception as error:  # noqa: BLE001 - whatever it is, the slower way is still there
                logger.warning("Continuous batching failed; what is left is generated without it: %s", error)
        if left:
            places = sorted(left)
            self.otherwise.generate(
                [prompts[place] for place in places],
                decoding,
                [streams[place] for place in places],
                lambda index, completion: finished(places[index], completion),
            )

    def in_pages(
        self, prompts: Sequence[Sequence[int]], limits: Mapping[int, int], decoding: Decoding, done: Finished
    ) -> None:
        """Continue the prompts that have a limit. Raises RuntimeError when the thread that generates has died."""
        model, stops = self.otherwise.model, sorted(decoding.stop_token_ids) or [NO_TOKEN]
        greedy = GenerationConfig(max_new_tokens=decoding.max_new_tokens, do_sample=False, eos_token_id=stops)  # type: ignore[no-untyped-call]
        pages = compat.page_settings(model, decoding.batch_size, SHARE[model.device.type])
        with (
            evaluating(model),
            model.continuous_batching_context_manager(greedy, continuous_batching_config=pages) as manager,  # type: ignore[operator]
        ):
            for index, limit in limits.items():
                manager.add_request(list(prompts[index]), str(index), max_new_tokens=limit, eos_token_id=stops)
            waiting = len(limits)
            while waiting:
                result = manager.get_result(timeout=PATIENCE)
                decoding.on_step(0.0)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("its thread has ended")
                elif result.is_finished():
                    waiting -= 1
                    if result.error is None:
                        ids = tuple(result.generated_tokens)
                        done(int(result.request_id), DecodedTokens(ids, ids[-1] in decoding.stop_token_ids))


def suits(decoding: Decoding) -> bool:
    """Whether transformers' continuous batching gives what is asked for."""
    return decoding.temperature == 0 and not decoding.stop_strings and decoding.logprobs is None
