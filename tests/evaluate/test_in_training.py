"""Training that is watched: the policy answers a few prompts on the infrequent cadence."""

from pathlib import Path

from peft import LoraConfig, get_peft_model

from dpo_core.evaluate.ifeval.ifeval_checkers import FollowedInstructions, IFEvalPrompt, score
from dpo_core.evaluate.in_training import followed_shares, ifeval_metrics
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_answerer
from dpo_core.inference.torch_engine import TorchEngine
from dpo_core.model.load import load_model
from dpo_core.model.lora import no_deprecations

ROWS = [
    IFEvalPrompt(key=1, prompt="Tell me of the park.", instruction_id_list=["punctuation:no_comma"], kwargs=[{}]),
    IFEvalPrompt(
        key=2,
        prompt="Who is Tom?",
        instruction_id_list=["length_constraints:number_words", "startend:quotation"],
        kwargs=[{"relation": "at least", "num_words": 3}, {}],
    ),
]


def test_shares_are_of_prompts_and_of_instructions() -> None:
    told = followed_shares([FollowedInstructions((True, False), (True, True)), FollowedInstructions((True,), (True,))])
    assert told == {"prompt_strict": 0.5, "prompt_loose": 1, "inst_strict": 2 / 3, "inst_loose": 1}


def test_a_policy_with_adapters_is_judged_on_what_it_says(stories: Path) -> None:
    answerer = open_answerer(stories)
    questions = [Conversation([{"role": "user", "content": row.prompt}]) for row in ROWS]
    answers = answerer.attempt(questions, Sampling(12))
    verdicts = [score(row, one.text) for row, one in zip(ROWS, answers, strict=True) if isinstance(one, Response)]
    with no_deprecations():
        policy = get_peft_model(load_model(stories), LoraConfig(r=2, target_modules="all-linear"))
    told = ifeval_metrics(ResponseGenerator(TorchEngine(policy), answerer.renderer), ROWS, Sampling(12))
    assert told == {f"test/ifeval_{name}": value for name, value in followed_shares(verdicts).items()}
    assert 0 < told["test/ifeval_inst_strict"] < 1
