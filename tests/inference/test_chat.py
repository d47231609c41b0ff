"""Chat and generation on the command line."""

import io
from pathlib import Path

import pytest

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.inference.chat import chat_command, fit_to_context, main
from dpo_core.inference.generator import ResponseGenerator, Sampling, open_generator
from dpo_core.inference.load_engine import EngineConfig

MARK = " [cut off after max_new_tokens=12]"


@pytest.fixture(scope="module")
def generator(stories: Path) -> ResponseGenerator:
    return open_generator(stories, EngineConfig(batch_size=1))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def respond(generator: ResponseGenerator, *messages: Message) -> str:
    [response] = generator.responses([messages], Sampling(12))
    return response.text


def chat(stories: Path, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    chat_command(stories, max_new_tokens=12)


def test_generate_prints_every_response_and_marks_those_cut_off(
    stories: Path, generator: ResponseGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    main("generate", [str(stories), "Tell me of Tom.", "max_new_tokens=12", "And of 1+1=2."])
    first, second = respond(generator, user("Tell me of Tom.")), respond(generator, user("And of 1+1=2."))
    assert capsys.readouterr().out == f"{first}{MARK}\n\n{second}{MARK}\n"


def test_chat_keeps_its_history_until_new(
    stories: Path, generator: ResponseGenerator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(stories, "Hello.\n\nWho is Tom?\n/new\nWho is Tom?\n/exit\nnever read\n", monkeypatch)
    first = respond(generator, user("Hello."))
    second = respond(generator, user("Hello."), assistant(first), user("Who is Tom?"))
    third = respond(generator, user("Who is Tom?"))
    assert capsys.readouterr().out.split(MARK + "\n") == [first, second, third, ""]
    assert second != third


def test_chat_ends_at_the_end_of_its_input(
    stories: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(stories, "Hello.\n", monkeypatch)
    assert capsys.readouterr().out.count(MARK) == 1


def test_a_long_conversation_loses_its_oldest_turns(generator: ResponseGenerator) -> None:
    """512 positions; each of these turns takes about 200."""
    turns = [user("word " * 60), assistant("word " * 60), user("word " * 60), assistant("word " * 60), user("Now?")]
    assert fit_to_context(generator, turns) == turns[2:]
    assert fit_to_context(generator, turns[-1:]) == turns[-1:]


def test_a_prompt_that_fills_the_context_is_refused(stories: Path) -> None:
    with pytest.raises(EvaluationError, match="fill the model's context"):
        main("generate", [str(stories), "word " * 600])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("generate", []),
        ("generate", ["model"]),
        ("generate", ["model", "Hello.", "max_new_tokens=many"]),
        ("generate", ["model", "Hello.", "max_new_tokens=0"]),
        ("chat", ["model", "Hello."]),
    ],
)
def test_an_unknown_command_line_is_refused(command: str, words: list[str]) -> None:
    with pytest.raises(RecipeError, match=f"{command} does not understand"):
        main(command, words)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"config\.json"):
        main("chat", [str(tmp_path)])
