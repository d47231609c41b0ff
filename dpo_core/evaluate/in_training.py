"""In-training evaluation: IFEval metrics of the policy on the first prompts, at each infrequent evaluation."""

from collections.abc import Sequence
from itertools import islice

from torch import nn

from dpo_core.evaluate.ifeval.ifeval_checkers import FollowedInstructions, IFEvalPrompt, score, set_nltk_data
from dpo_core.evaluate.ifeval.ifeval_prompts import read_prompts
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.render.renderer import Renderer
from dpo_core.stages.train import TrainRequest
from dpo_core.train.runtime.setup import PolicyMetrics


def metrics_of(request: TrainRequest) -> PolicyMetrics:
    """The function that computes the policy's IFEval metrics, for this request's prompts and sampling settings."""
    assert request.prompts is not None
    set_nltk_data(request.nltk_data)
    rows = [row for _, row in islice(read_prompts(request.prompts.path), request.watched)]
    sampling = Sampling(request.max_new_tokens)

    def policy_metrics(policy: nn.Module, renderer: Renderer) -> dict[str, float]:
        engine = TorchEngine(policy, request.train.precision)  # type: ignore[arg-type]
        return ifeval_metrics(ResponseGenerator(engine, renderer), rows, sampling)

    return policy_metrics


def ifeval_metrics(generator: ResponseGenerator, rows: Sequence[IFEvalPrompt], sampling: Sampling) -> dict[str, float]:
    """``test/ifeval_prompt_strict`` and the other shares of prompts and instructions followed.

    A prompt whose generation failed counts as not followed.
    """
    responses = generator.responses_or_errors(
        [Conversation([{"role": "user", "content": row.prompt}]) for row in rows], sampling
    )
    verdicts = [
        score(row, response.text if isinstance(response, Response) else "")
        for row, response in zip(rows, responses, strict=True)
    ]
    return {f"test/ifeval_{name}": value for name, value in followed_shares(verdicts).items()}


def followed_shares(verdicts: Sequence[FollowedInstructions]) -> dict[str, float]:
    """Shares of prompts and of instructions followed, strict and loose."""
    followed = {
        "strict": [verdict.strict for verdict in verdicts],
        "loose": [verdict.loose for verdict in verdicts],
    }
    prompts = {f"prompt_{kind}": sum(map(all, marks)) / len(marks) for kind, marks in followed.items()}
    instructions = sum(len(verdict.strict) for verdict in verdicts)
    return prompts | {f"inst_{kind}": sum(map(sum, marks)) / instructions for kind, marks in followed.items()}
