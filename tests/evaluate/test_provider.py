"""inspect-ai's provider: concurrent requests in one batch, honest reasons and counts, nothing ignored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, Model, ModelOutput, get_model
from inspect_ai.tool import ToolInfo

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.evaluate import entry
from dpo_core.evaluate.answers import Answer, Answerer, Sampling, open_answerer

TEXTS = ["Hello.", "Tell me of the dog that went to the park.", "Why?", "And then? " * 9, "Who is Tom?"]


class Recorder:
    """Stands in for a model: notes each batch, answers with the question."""

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[int] = []
        self.failures = failures

    def answer(self, conversations: Sequence[Sequence[Message]], sampling: Sampling) -> list[Answer]:
        self.batches.append(len(conversations))
        if len(self.batches) <= self.failures:
            raise MemoryError("the batch does not fit")
        return [Answer(messages[-1]["content"], "stop", 3, sampling.max_new_tokens) for messages in conversations]


def recorded(recorder: Recorder) -> Model:
    provider: Any = entry.dpo
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
def answerer(stories: Path) -> Answerer:
    return open_answerer(stories, batch_size=8)


def test_answers_reasons_and_counts_are_the_model_s(stories: Path, answerer: Answerer) -> None:
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


def test_system_messages_reach_the_renderer(stories: Path, answerer: Answerer) -> None:
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


@pytest.mark.parametrize("setting", [{"top_p": 0.9}, {"stop_seqs": ["."]}, {"num_choices": 2}])
def test_settings_that_it_does_not_have_are_refused(setting: dict[str, Any]) -> None:
    [error] = ask(recorded(Recorder()), ["Hello."], GenerateConfig(**setting))
    assert isinstance(error, EvaluationError)
    assert "does not know" in error.found


def test_tools_are_refused() -> None:
    async def with_tools() -> None:
        await recorded(Recorder()).generate("Hello.", tools=[ToolInfo(name="search", description="Searches.")])

    with pytest.raises(EvaluationError, match="tools"):
        anyio.run(with_tools)


def test_unknown_arguments_and_missing_directories_are_refused(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no argument temperatur"):
        get_model(f"dpo/{stories}", memoize=False, temperatur=1)
    with pytest.raises(RecipeError, match=r"config\.json"):
        get_model(f"dpo/{tmp_path}", memoize=False)
