"""In-training evaluation: at each infrequent evaluation the policy answers IFEval's first prompts, and is scored."""

from collections.abc import Sequence
from itertools import islice

from torch import nn

from dpo_core.evaluate.ifeval.ifeval_checkers import FollowedInstructions, IFEvalPrompt, score, sentences_from
from dpo_core.evaluate.ifeval.ifeval_prompts import read
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.render.renderer import Renderer
from dpo_core.stages.train import TrainRequest
from dpo_core.train.runtime.setup import PolicyMetrics


def metrics_of(request: TrainRequest) -> PolicyMetrics:
    """What training calls at each infrequent evaluation, for the run of this request."""
    assert request.prompts is not None
    sentences_from(request.nltk_data)
    rows = [row for _, row in islice(read(request.prompts.path), request.watched)]
    sampling = Sampling(request.max_new_tokens)

    def followed_now(policy: nn.Module, renderer: Renderer) -> dict[str, float]:
        engine = TorchEngine(policy, request.train.precision)  # type: ignore[arg-type]
        return followed(ResponseGenerator(engine, renderer), rows, sampling)

    return followed_now


def followed(answerer: ResponseGenerator, rows: Sequence[IFEvalPrompt], sampling: Sampling) -> dict[str, float]:
    """``test/ifeval_prompt_strict`` and the other shares of prompts and instructions that are followed.

    A prompt that could not be answered followed nothing.
    """
    answers = answerer.responses_or_errors(
        [Conversation([{"role": "user", "content": row.prompt}]) for row in rows], sampling
    )
    verdicts = [
        score(row, answer.text if isinstance(answer, Response) else "")
        for row, answer in zip(rows, answers, strict=True)
    ]
    return {f"test/ifeval_{name}": value for name, value in shares(verdicts).items()}


def shares(verdicts: Sequence[FollowedInstructions]) -> dict[str, float]:
    """Prompts and instructions followed, strictly and loosely."""
    sides = {"strict": [one.strict for one in verdicts], "loose": [one.loose for one in verdicts]}
    prompts = {f"prompt_{kind}": sum(map(all, marks)) / len(marks) for kind, marks in sides.items()}
    asked = sum(len(one.strict) for one in verdicts)
    return prompts | {f"inst_{kind}": sum(map(sum, marks)) / asked for kind, marks in sides.items()}
