"""inspect-ai's provider: concurrent requests in one batch, honest reasons and counts, nothing ignored."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    ModelOutput,
    get_model,
)
from inspect_ai.tool import ToolInfo
from peft import LoraConfig, get_peft_model

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.inspect import inspect_plugin
from dpo_core.evaluate.inspect.inspect_errors import InspectPrerequisiteError
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_answerer
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.model.load import load_model
from dpo_core.model.lora import merged, no_deprecations
from dpo_core.model.save_model import save_model
from dpo_core.render.token_dataset import CompletionTokens
from dpo_core.train.batching.packing import Branches, build
from dpo_core.train.logps import completion_logps

BEGINNING = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
BARE = """
from dpo_core.render.renderer import Renderer
from dpo_core.render.message_pieces import Turn

class Bare(Renderer):
    name = "bare"

    def turn(self, messages, index):
        return Turn((), (messages[index]["content"],))
"""
TEXTS = ["Hello.", "Tell me of the dog that went to the park.", "Why?", "And then? " * 9, "Who is Tom?"]


class Recorder:
    """Stands in for a model: notes each batch, answers with the question."""

    renderer = None
    engine = SimpleNamespace(context=512)

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[int] = []
        self.failures = failures

    def attempt(self, questions: Sequence[Conversation], sampling: Sampling) -> list[Response | Exception]:
        self.batches.append(len(questions))
        if len(self.batches) <= self.failures:
            raise MemoryError("the batch does not fit")
        return [Response(asked.messages[-1]["content"], "stop", 3, sampling.max_new_tokens) for asked in questions]


def recorded(recorder: Recorder) -> Model:
    provider: Any = inspect_plugin.dpo
    return Model(provider("recorder", answerer=recorder), GenerateConfig())


def ask(model: Model, texts: Sequence[str], *configs: GenerateConfig) -> list[ModelOutput | Exception]:
    """All at once, each with its own settings where given."""
    answers: list[ModelOutput | Exception] = [RuntimeError("unasked")] * len(texts)

    async def one(place: int) -> None:
        try:
            answers[place] = await model.generate(texts[place], config=configs[place % len(configs)])
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            answers[place] = error

    async def everything() -> None:
        async with anyio.create_task_group() as group:
            for place in range(len(texts)):
                group.start_soon(one, place)

    anyio.run(everything)
    return answers


@pytest.fixture(scope="module")
def answerer(stories: Path) -> ResponseGenerator:
    return open_answerer(stories, EngineConfig(batch_size=8))


def test_answers_reasons_and_counts_are_the_model_s(stories: Path, answerer: ResponseGenerator) -> None:
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name="role_colon")
    outputs = ask(model, TEXTS, GenerateConfig(max_tokens=15, max_connections=8))
    expected = answerer.answer([[{"role": "user", "content": text}] for text in TEXTS], Sampling(15))
    for output, answer in zip(outputs, expected, strict=True):
        assert isinstance(output, ModelOutput)
        assert output.usage is not None
        assert (output.completion, output.stop_reason) == (answer.text, "max_tokens")
        assert (output.usage.input_tokens, output.usage.output_tokens) == (answer.prompt_tokens, 15)


def test_a_full_context_is_not_called_a_stop(stories: Path) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)
    [output] = ask(model, ["word " * 150], GenerateConfig(max_tokens=400))
    assert isinstance(output, ModelOutput)
    assert output.stop_reason == "model_length"


def test_system_messages_reach_the_renderer(stories: Path, answerer: ResponseGenerator) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)

    async def answered() -> str:
        told = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Hello.")]
        return (await model.generate(told, config=GenerateConfig(max_tokens=9))).completion

    messages: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    assert anyio.run(answered) == answerer.answer([messages], Sampling(9))[0].text


def test_concurrent_requests_are_one_batch() -> None:
    recorder = Recorder()
    outputs = ask(recorded(recorder), TEXTS, GenerateConfig(max_tokens=4, max_connections=8))
    assert [output.completion for output in outputs if isinstance(output, ModelOutput)] == TEXTS
    assert recorder.batches == [5]


def test_requests_with_other_settings_are_another_batch() -> None:
    recorder = Recorder()
    configs = GenerateConfig(max_tokens=4, max_connections=8), GenerateConfig(max_tokens=6, max_connections=8)
    outputs = ask(recorded(recorder), TEXTS, *configs)
    used = [output.usage.output_tokens for output in outputs if isinstance(output, ModelOutput) and output.usage]
    assert used == [4, 6, 4, 6, 4]
    assert sorted(recorder.batches) == [2, 3]


def test_a_failed_batch_fails_all_of_it_and_nothing_after_it() -> None:
    model = recorded(Recorder(failures=1))
    config = GenerateConfig(max_tokens=4, max_connections=8)
    assert [str(error) for error in ask(model, TEXTS, config)] == ["the batch does not fit"] * 5
    assert all(isinstance(output, ModelOutput) for output in ask(model, TEXTS, config))


@pytest.mark.parametrize("setting", [{"prompt_logprobs": 1}, {"frequency_penalty": 0.5}, {"logit_bias": {5: 1.0}}])
def test_settings_that_it_does_not_have_are_refused(setting: dict[str, Any]) -> None:
    [error] = ask(recorded(Recorder()), ["Hello."], GenerateConfig(**setting))
    assert isinstance(error, EvaluationError)
    assert "does not know" in error.found


def test_one_prompt_that_fails_takes_no_other_with_it(answerer: ResponseGenerator) -> None:
    """A token that the model has no embedding for."""
    prompts = [[1, 5], [1, 6], [1, 9999], [1, 7], [1, 8]]
    outcomes = answerer.continue_all(prompts, [str(prompt) for prompt in prompts], Sampling(5))
    assert isinstance(outcomes.pop(2), IndexError)
    assert outcomes == answerer.answer_ids([*prompts[:2], *prompts[3:]], Sampling(5))


def test_choices_and_log_probabilities(stories: Path, answerer: ResponseGenerator) -> None:
    """Greedy choices are all the same; the log-probabilities are those of the answer's tokens."""
    model = get_model(f"dpo/{stories}", memoize=False)
    config = GenerateConfig(max_tokens=8, num_choices=2, logprobs=True, top_logprobs=2)
    [output] = ask(model, ["Hello."], config)
    assert isinstance(output, ModelOutput)
    assert output.usage is not None
    assert [choice.message.text for choice in output.choices] == [output.completion] * 2
    assert output.usage.output_tokens == 16
    logprobs = output.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content) == 8
    for one in logprobs.content:
        assert one.top_logprobs is not None
        assert (one.top_logprobs[0].token, one.top_logprobs[0].logprob) == (one.token, one.logprob)
        assert one.top_logprobs[1].logprob < one.logprob < 0


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A renderer that adds nothing: the text of the messages after the BOS token, no more."""
    (tmp_path / "bare_format.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    return "bare_format:Bare"


@pytest.mark.parametrize("size", [1, 2, 5, None])
def test_the_documented_text_in_every_batch_size_and_beside_any_neighbours(
    stories: Path, bare: str, size: int | None
) -> None:
    """From BOS alone; neighbours end earlier and later, are asked at the same time, and answer as they do alone."""
    told = {} if size is None else {"batch_size": size}
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name=bare, **told)
    texts, config = ["", *TEXTS, "Once", *TEXTS, ""], GenerateConfig(max_tokens=60, max_connections=32)
    outputs = ask(model, texts, config)
    said = [output.completion.strip() for output in outputs if isinstance(output, ModelOutput)]
    assert len(said) == len(texts)
    assert said[0] == said[-1]
    assert said[0].startswith(BEGINNING)
    alone = [ask(model, [text], config)[0] for text in texts[:7]]
    assert said[:7] == [output.completion.strip() for output in alone if isinstance(output, ModelOutput)]
    assert said[1:6] == said[7:12]


def test_log_probabilities_are_the_trainer_s(stories: Path) -> None:
    """Sampled answers, read back by the names of their tokens, and scored as training scores them."""
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name="role_colon")
    outputs = ask(model, TEXTS, GenerateConfig(max_tokens=25, temperature=1.0, logprobs=True, max_connections=8))
    answerer = open_answerer(stories, renderer_name="role_colon")
    tokenizer = answerer.renderer.tokenizer
    items, told = [], []
    for text, output in zip(TEXTS, outputs, strict=True):
        assert isinstance(output, ModelOutput)
        assert output.choices[0].logprobs is not None
        content = output.choices[0].logprobs.content
        ids = np.array(tokenizer.convert_tokens_to_ids([one.token for one in content]), dtype=np.int32)
        prompt = np.array(answerer.prompt(Conversation([{"role": "user", "content": text}])), dtype=np.int32)
        items.append(Branches(prompt, (CompletionTokens(ids, np.ones(len(ids), dtype=np.bool_)),)))
        told += [one.logprob for one in content]
    expected = completion_logps(load_model(stories), build("padded", items, torch.device("cpu")))
    assert told == pytest.approx(expected.tolist(), abs=2e-4)


def test_a_prompt_beyond_the_context_gets_nothing_and_says_so(stories: Path) -> None:
    """512 positions; its neighbour is answered."""
    model = get_model(f"dpo/{stories}", memoize=False)
    full, other = ask(model, ["word " * 600, "Why?"], GenerateConfig(max_tokens=5, max_connections=8))
    assert isinstance(full, ModelOutput)
    assert isinstance(other, ModelOutput)
    assert (full.completion, full.stop_reason) == ("", "model_length")
    assert other.stop_reason == "max_tokens"


def test_draws_follow_the_seed_whatever_else_is_asked(stories: Path) -> None:
    """A second choice, and the same question again, are other draws; a new process makes the same ones."""
    config = GenerateConfig(max_tokens=12, temperature=1.0, seed=5, num_choices=2)

    def drawn(*texts: str) -> list[str]:
        model = get_model(f"dpo/{stories}", memoize=False)
        outputs = ask(model, texts, config)
        return sorted(
            choice.message.text for output in outputs if isinstance(output, ModelOutput) for choice in output.choices
        )

    alone = drawn("Hello.")
    twice = drawn("Hello.", "Hello.")
    assert len(set(twice)) == 4
    assert set(alone) < set(twice)
    assert set(twice) < set(drawn("Why?", "Hello.", "Who is Tom?", "Hello."))


def test_stop_sequences_end_an_answer_and_are_not_in_it(stories: Path) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)
    whole, cut = (ask(model, ["Hello."], GenerateConfig(max_tokens=60, stop_seqs=stops))[0] for stops in (None, ["."]))
    assert isinstance(whole, ModelOutput)
    assert isinstance(cut, ModelOutput)
    assert cut.completion == whole.completion.partition(".")[0]
    assert (cut.stop_reason, whole.stop_reason) == ("stop", "max_tokens")


def test_adapters_answer_as_the_model_that_they_make(stories: Path, tmp_path: Path) -> None:
    """A directory as a run leaves it: adapters, and the renderer that they were trained with."""
    torch.manual_seed(0)
    with no_deprecations():
        policy = get_peft_model(
            load_model(stories), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
        )
    policy.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "dpo.json").write_text('{"renderer_name": "role_colon"}')
    save_model(merged(policy), stories, "role_colon", tmp_path / "whole")
    outputs = [
        ask(get_model(f"dpo/{path}", memoize=False), TEXTS, GenerateConfig(max_tokens=15, max_connections=8))
        for path in (tmp_path / "adapter", tmp_path / "whole", stories)
    ]
    said = [[output.completion for output in told if isinstance(output, ModelOutput)] for told in outputs]
    assert said[0] == said[1] != said[2]


def test_what_is_no_directory_is_asked_of_the_registries(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that registers itself under dpo_core.models, as ours does."""
    package = tmp_path / "other-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[dpo_core.models]\nother = other_registry:where\n")
    (tmp_path / "other_registry.py").write_text(
        f"from pathlib import Path\ndef where(name):\n    return Path({str(stories)!r}) if name == 'tales' else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # away from a registry of earlier runs
    [output] = ask(get_model("dpo/tales", memoize=False), ["Hello."], GenerateConfig(max_tokens=3))
    assert isinstance(output, ModelOutput)
    assert output.usage is not None
    assert output.usage.output_tokens == 3
    with pytest.raises(InspectPrerequisiteError, match="There is no model 'tale'"):
        get_model("dpo/tale", memoize=False)


def test_tools_are_refused() -> None:
    async def with_tools() -> None:
        await recorded(Recorder()).generate("Hello.", tools=[ToolInfo(name="search", description="Searches.")])

    with pytest.raises(EvaluationError, match="tools"):
        anyio.run(with_tools)


def test_unknown_arguments_and_missing_directories_are_refused(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(InspectPrerequisiteError, match="no argument temperatur"):
        get_model(f"dpo/{stories}", memoize=False, temperatur=1)
    with pytest.raises(InspectPrerequisiteError, match=r"config\.json"):
        get_model(f"dpo/{tmp_path}", memoize=False)
