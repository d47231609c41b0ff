"""Model provider for inspect-ai: batching, stop reasons, token counts, and rejected settings."""

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
from dpo_core.inference.generator import Conversation, Response, ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig
from dpo_core.model.load import load_model
from dpo_core.model.lora import ignore_deprecations, merge_adapters
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


class BatchRecorder:
    """A fake generator that records batch sizes and returns each prompt as its response."""

    renderer = None
    engine = SimpleNamespace(context_length=512)

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[int] = []
        self.failures = failures

    def responses_or_errors(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> list[Response | Exception]:
        self.batches.append(len(conversations))
        if len(self.batches) <= self.failures:
            raise MemoryError("the batch does not fit")
        return [
            Response(conversation.messages[-1]["content"], "stop", 3, sampling.max_new_tokens)
            for conversation in conversations
        ]


def recording_model(recorder: BatchRecorder) -> Model:
    provider: Any = inspect_plugin.dpo
    return Model(provider("recorder", generator=recorder), GenerateConfig())


def generate_all(model: Model, texts: Sequence[str], *configs: GenerateConfig) -> list[ModelOutput | Exception]:
    """Generate concurrently, the settings cycling through ``configs``."""
    outputs: list[ModelOutput | Exception] = [RuntimeError("not generated")] * len(texts)

    async def generate_one(index: int) -> None:
        try:
            outputs[index] = await model.generate(texts[index], config=configs[index % len(configs)])
        except Exception as error:  # noqa: BLE001 - tests check the exceptions
            outputs[index] = error

    async def generate_concurrently() -> None:
        async with anyio.create_task_group() as group:
            for index in range(len(texts)):
                group.start_soon(generate_one, index)

    anyio.run(generate_concurrently)
    return outputs


@pytest.fixture(scope="module")
def answerer(stories: Path) -> ResponseGenerator:
    return open_generator(stories, EngineConfig(batch_size=8))


def test_outputs_have_the_model_s_text_stop_reason_and_token_counts(stories: Path, answerer: ResponseGenerator) -> None:
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name="role_colon")
    outputs = generate_all(model, TEXTS, GenerateConfig(max_tokens=15, max_connections=8))
    expected = answerer.responses([[{"role": "user", "content": text}] for text in TEXTS], Sampling(15))
    for output, answer in zip(outputs, expected, strict=True):
        assert isinstance(output, ModelOutput)
        assert output.usage is not None
        assert (output.completion, output.stop_reason) == (answer.text, "max_tokens")
        assert (output.usage.input_tokens, output.usage.output_tokens) == (answer.prompt_tokens, 15)


def test_a_full_context_has_the_stop_reason_model_length(stories: Path) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)
    [output] = generate_all(model, ["word " * 150], GenerateConfig(max_tokens=400))
    assert isinstance(output, ModelOutput)
    assert output.stop_reason == "model_length"


def test_system_messages_reach_the_renderer(stories: Path, answerer: ResponseGenerator) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)

    async def answered() -> str:
        messages = [ChatMessageSystem(content="Be brief."), ChatMessageUser(content="Hello.")]
        return (await model.generate(messages, config=GenerateConfig(max_tokens=9))).completion

    messages: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    assert anyio.run(answered) == answerer.responses([messages], Sampling(9))[0].text


def test_concurrent_requests_are_one_batch() -> None:
    recorder = BatchRecorder()
    outputs = generate_all(recording_model(recorder), TEXTS, GenerateConfig(max_tokens=4, max_connections=8))
    assert [output.completion for output in outputs if isinstance(output, ModelOutput)] == TEXTS
    assert recorder.batches == [5]


def test_requests_with_other_settings_are_another_batch() -> None:
    recorder = BatchRecorder()
    configs = GenerateConfig(max_tokens=4, max_connections=8), GenerateConfig(max_tokens=6, max_connections=8)
    outputs = generate_all(recording_model(recorder), TEXTS, *configs)
    used = [output.usage.output_tokens for output in outputs if isinstance(output, ModelOutput) and output.usage]
    assert used == [4, 6, 4, 6, 4]
    assert sorted(recorder.batches) == [2, 3]


def test_a_failed_batch_fails_all_of_it_and_nothing_after_it() -> None:
    model = recording_model(BatchRecorder(failures=1))
    config = GenerateConfig(max_tokens=4, max_connections=8)
    assert [str(error) for error in generate_all(model, TEXTS, config)] == ["the batch does not fit"] * 5
    assert all(isinstance(output, ModelOutput) for output in generate_all(model, TEXTS, config))


@pytest.mark.parametrize("setting", [{"prompt_logprobs": 1}, {"frequency_penalty": 0.5}, {"logit_bias": {5: 1.0}}])
def test_unsupported_settings_are_rejected(setting: dict[str, Any]) -> None:
    [error] = generate_all(recording_model(BatchRecorder()), ["Hello."], GenerateConfig(**setting))
    assert isinstance(error, EvaluationError)
    assert "does not support" in error.found


def test_a_failing_prompt_does_not_fail_the_others(answerer: ResponseGenerator) -> None:
    """A token that the model has no embedding for."""
    prompts = [[1, 5], [1, 6], [1, 9999], [1, 7], [1, 8]]
    outcomes = answerer.complete_prompts(prompts, [str(prompt) for prompt in prompts], Sampling(5))
    assert isinstance(outcomes.pop(2), IndexError)
    assert outcomes == answerer.responses_to_ids([*prompts[:2], *prompts[3:]], Sampling(5))


def test_choices_and_log_probabilities(stories: Path, answerer: ResponseGenerator) -> None:
    """Greedy choices are all the same; the log-probabilities are those of the response's tokens."""
    model = get_model(f"dpo/{stories}", memoize=False)
    config = GenerateConfig(max_tokens=8, num_choices=2, logprobs=True, top_logprobs=2)
    [output] = generate_all(model, ["Hello."], config)
    assert isinstance(output, ModelOutput)
    assert output.usage is not None
    assert [choice.message.text for choice in output.choices] == [output.completion] * 2
    assert output.usage.output_tokens == 16
    logprobs = output.choices[0].logprobs
    assert logprobs is not None
    assert len(logprobs.content) == 8
    for token in logprobs.content:
        assert token.top_logprobs is not None
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert token.top_logprobs[1].logprob < token.logprob < 0


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A renderer that adds nothing: the text of the messages after the BOS token, no more."""
    (tmp_path / "bare_format.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    return "bare_format:Bare"


@pytest.mark.parametrize("size", [1, 2, 5, None])
def test_outputs_do_not_depend_on_the_batch(stories: Path, bare: str, size: int | None) -> None:
    """The model's documented text follows BOS alone; other prompts in the batch end earlier and later."""
    arguments = {} if size is None else {"batch_size": size}
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name=bare, **arguments)
    texts, config = ["", *TEXTS, "Once", *TEXTS, ""], GenerateConfig(max_tokens=60, max_connections=32)
    outputs = generate_all(model, texts, config)
    completions = [output.completion.strip() for output in outputs if isinstance(output, ModelOutput)]
    assert len(completions) == len(texts)
    assert completions[0] == completions[-1]
    assert completions[0].startswith(BEGINNING)
    alone = [generate_all(model, [text], config)[0] for text in texts[:7]]
    assert completions[:7] == [output.completion.strip() for output in alone if isinstance(output, ModelOutput)]
    assert completions[1:6] == completions[7:12]


def test_log_probabilities_equal_those_of_training(stories: Path) -> None:
    """Sampled responses are tokenized by token names and scored with completion_logps."""
    model = get_model(f"dpo/{stories}", memoize=False, renderer_name="role_colon")
    outputs = generate_all(
        model, TEXTS, GenerateConfig(max_tokens=25, temperature=1.0, logprobs=True, max_connections=8)
    )
    answerer = open_generator(stories, renderer_name="role_colon")
    tokenizer = answerer.renderer.tokenizer
    items, logprobs = [], []
    for text, output in zip(TEXTS, outputs, strict=True):
        assert isinstance(output, ModelOutput)
        assert output.choices[0].logprobs is not None
        content = output.choices[0].logprobs.content
        ids = np.array(tokenizer.convert_tokens_to_ids([token.token for token in content]), dtype=np.int32)
        prompt = np.array(answerer.encode_prompt(Conversation([{"role": "user", "content": text}])), dtype=np.int32)
        items.append(Branches(prompt, (CompletionTokens(ids, np.ones(len(ids), dtype=np.bool_)),)))
        logprobs += [token.logprob for token in content]
    expected = completion_logps(load_model(stories), build("padded", items, torch.device("cpu")))
    assert logprobs == pytest.approx(expected.tolist(), abs=2e-4)


def test_a_prompt_longer_than_the_context_gets_an_empty_response(stories: Path) -> None:
    """The context has 512 positions; the other prompt of the batch gets its response."""
    model = get_model(f"dpo/{stories}", memoize=False)
    full, other = generate_all(model, ["word " * 600, "Why?"], GenerateConfig(max_tokens=5, max_connections=8))
    assert isinstance(full, ModelOutput)
    assert isinstance(other, ModelOutput)
    assert (full.completion, full.stop_reason) == ("", "model_length")
    assert other.stop_reason == "max_tokens"


def test_random_draws_depend_only_on_seed_and_prompt(stories: Path) -> None:
    """A second choice and a repeated prompt are drawn anew; a new model draws the same ones."""
    config = GenerateConfig(max_tokens=12, temperature=1.0, seed=5, num_choices=2)

    def drawn(*texts: str) -> list[str]:
        model = get_model(f"dpo/{stories}", memoize=False)
        outputs = generate_all(model, texts, config)
        return sorted(
            choice.message.text for output in outputs if isinstance(output, ModelOutput) for choice in output.choices
        )

    alone = drawn("Hello.")
    twice = drawn("Hello.", "Hello.")
    assert len(set(twice)) == 4
    assert set(alone) < set(twice)
    assert set(twice) < set(drawn("Why?", "Hello.", "Who is Tom?", "Hello."))


def test_stop_sequences_end_a_response_and_are_not_part_of_it(stories: Path) -> None:
    model = get_model(f"dpo/{stories}", memoize=False)
    configs = [GenerateConfig(max_tokens=60, stop_seqs=stops) for stops in (None, ["."])]
    full, cut = (generate_all(model, ["Hello."], config)[0] for config in configs)
    assert isinstance(full, ModelOutput)
    assert isinstance(cut, ModelOutput)
    assert cut.completion == full.completion.partition(".")[0]
    assert (cut.stop_reason, full.stop_reason) == ("stop", "max_tokens")


def test_adapters_generate_as_the_merged_model(stories: Path, tmp_path: Path) -> None:
    """A run's adapter directory: the adapters, and the name of their renderer."""
    torch.manual_seed(0)
    with ignore_deprecations():
        policy = get_peft_model(
            load_model(stories), LoraConfig(r=4, init_lora_weights=False, target_modules="all-linear")
        )
    policy.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "dpo.json").write_text('{"renderer_name": "role_colon"}')
    save_model(merge_adapters(policy), stories, "role_colon", tmp_path / "whole")
    outputs = [
        generate_all(get_model(f"dpo/{path}", memoize=False), TEXTS, GenerateConfig(max_tokens=15, max_connections=8))
        for path in (tmp_path / "adapter", tmp_path / "whole", stories)
    ]
    completions = [[output.completion for output in run if isinstance(output, ModelOutput)] for run in outputs]
    assert completions[0] == completions[1] != completions[2]


def test_a_name_that_is_no_directory_is_found_in_a_registry(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is a package with an entry point in dpo_core.models."""
    package = tmp_path / "other-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[dpo_core.models]\nother = other_registry:where\n")
    (tmp_path / "other_registry.py").write_text(
        f"from pathlib import Path\ndef where(name):\n    return Path({str(stories)!r}) if name == 'tales' else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)  # away from a registry of earlier runs
    [output] = generate_all(get_model("dpo/tales", memoize=False), ["Hello."], GenerateConfig(max_tokens=3))
    assert isinstance(output, ModelOutput)
    assert output.usage is not None
    assert output.usage.output_tokens == 3
    with pytest.raises(InspectPrerequisiteError, match="There is no model 'tale'"):
        get_model("dpo/tale", memoize=False)


def test_tools_are_refused() -> None:
    async def with_tools() -> None:
        await recording_model(BatchRecorder()).generate(
            "Hello.", tools=[ToolInfo(name="search", description="Searches.")]
        )

    with pytest.raises(EvaluationError, match="tools"):
        anyio.run(with_tools)


def test_unknown_arguments_and_missing_directories_are_refused(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(InspectPrerequisiteError, match="no argument temperatur"):
        get_model(f"dpo/{stories}", memoize=False, temperatur=1)
    with pytest.raises(InspectPrerequisiteError, match=r"config\.json"):
        get_model(f"dpo/{tmp_path}", memoize=False)
