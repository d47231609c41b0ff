"""In-training evaluation: IFEval metrics of a policy with adapters."""

from pathlib import Path

from peft import LoraConfig, get_peft_model

from dpo_core.evaluate.ifeval.ifeval_checkers import FollowedInstructions, IFEvalPrompt, score
from dpo_core.evaluate.in_training import followed_shares, ifeval_metrics
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_generator
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.model.load import load_model
from dpo_core.model.lora import ignore_deprecations

ROWS = [
    IFEvalPrompt(key=1, prompt="Tell me of the park.", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]),
    IFEvalPrompt(
        key=2,
        prompt="Who is Tom?",
        instruction_id_list=["length_constraints:number_words", "startend:quotation"],
        kwargs=[{"relation": "at least", "num_words": 3}, {}],
    ),
]


def test_shares_of_prompts_and_of_instructions() -> None:
    metrics = followed_shares(
        [FollowedInstructions((True, False), (True, True)), FollowedInstructions((True,), (True,))]
    )
    assert metrics == {"prompt_strict": 0.5, "prompt_loose": 1, "inst_strict": 2 / 3, "inst_loose": 1}


def test_metrics_of_a_policy_with_adapters(stories: Path) -> None:
    generator = open_generator(stories)
    conversations = [Conversation([{"role": "user", "content": row.prompt}]) for row in ROWS]
    responses = generator.responses_or_errors(conversations, Sampling(12))
    verdicts = [
        score(row, response.text)
        for row, response in zip(ROWS, responses, strict=True)
        if isinstance(response, Response)
    ]
    with ignore_deprecations():
        policy = get_peft_model(load_model(stories), LoraConfig(r=2, target_modules="all-linear"))
    metrics = ifeval_metrics(ResponseGenerator(TorchEngine(policy), generator.renderer), ROWS, Sampling(12))
    assert metrics == {f"test/ifeval_{name}": value for name, value in followed_shares(verdicts).items()}
    assert 0 < metrics["test/ifeval_inst_strict"] < 1
