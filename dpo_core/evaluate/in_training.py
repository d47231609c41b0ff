"""The train stage, watched: at each infrequent evaluation the policy answers IFEval's first prompts, and is judged.

The training engine knows nothing of tasks; what looks at its policy is handed to it from here.
"""

from collections.abc import Sequence
from itertools import islice

from torch import nn

from dpo_core.cache.store import Draft
from dpo_core.evaluate.ifeval.ifeval_checkers import Row, Verdict, score, sentences_from
from dpo_core.evaluate.ifeval.ifeval_prompts import read
from dpo_core.inference.generator import Answer, Answerer, Question, Sampling
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.render.renderer import Renderer
from dpo_core.stages.train import TrainRequest
from dpo_core.train import train


def run(request: TrainRequest, draft: Draft) -> None:
    """Train to the end; publish the final Checkpoint. Raises as the train stage does."""
    if request.prompts is None:
        train.run(request, draft)
        return
    sentences_from(request.nltk_data)
    rows = [row for _, row in islice(read(request.prompts.path), request.watched)]
    sampling = Sampling(request.max_new_tokens)

    def watch(policy: nn.Module, renderer: Renderer) -> dict[str, float]:
        return followed(Answerer(TorchEngine(policy, request.train.precision), renderer), rows, sampling)  # type: ignore[arg-type]

    train.run(request, draft, watch)


def followed(answerer: Answerer, rows: Sequence[Row], sampling: Sampling) -> dict[str, float]:
    """``test/ifeval_prompt_strict`` and the other shares of prompts and instructions that are followed.

    A prompt that could not be answered followed nothing.
    """
    answers = answerer.attempt([Question([{"role": "user", "content": row.prompt}]) for row in rows], sampling)
    verdicts = [
        score(row, answer.text if isinstance(answer, Answer) else "") for row, answer in zip(rows, answers, strict=True)
    ]
    return {f"test/ifeval_{name}": value for name, value in shares(verdicts).items()}


def shares(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Prompts and instructions followed, strictly and loosely."""
    sides = {"strict": [one.strict for one in verdicts], "loose": [one.loose for one in verdicts]}
    prompts = {f"prompt_{kind}": sum(map(all, marks)) / len(marks) for kind, marks in sides.items()}
    asked = sum(len(one.strict) for one in verdicts)
    return prompts | {f"inst_{kind}": sum(map(sum, marks)) / asked for kind, marks in sides.items()}
