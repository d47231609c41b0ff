"""Trying a model by hand."""

import io
from pathlib import Path

import pytest

from dpo_core.data.preference import Message
from dpo_core.errors import EvaluationError, RecipeError
from dpo_core.inference.chat import chat_command, fitting, main
from dpo_core.inference.generator import ResponseGenerator, Sampling, open_answerer
from dpo_core.inference.load_engine import EngineConfig

MARK = " [cut off after max_new_tokens=12]"


@pytest.fixture(scope="module")
def answerer(stories: Path) -> ResponseGenerator:
    return open_answerer(stories, EngineConfig(batch_size=1))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def answer(answerer: ResponseGenerator, *messages: Message) -> str:
    [said] = answerer.answer([messages], Sampling(12))
    return said.text


def chat(stories: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    chat_command(stories, max_new_tokens=12)


def test_generate_prints_every_answer_and_says_that_it_was_cut_off(
    stories: Path, answerer: ResponseGenerator, capsys: pytest.CaptureFixture[str]
) -> None:
    main("generate", [str(stories), "Tell me of Tom.", "max_new_tokens=12", "And of 1+1=2."])
    first, second = answer(answerer, user("Tell me of Tom.")), answer(answerer, user("And of 1+1=2."))
    assert capsys.readouterr().out == f"{first}{MARK}\n\n{second}{MARK}\n"


def test_chat_remembers_until_told_to_start_over(
    stories: Path, answerer: ResponseGenerator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(stories, "Hello.\n\nWho is Tom?\n/new\nWho is Tom?\n/exit\nnever read\n", monkeypatch)
    first = answer(answerer, user("Hello."))
    second = answer(answerer, user("Hello."), assistant(first), user("Who is Tom?"))
    third = answer(answerer, user("Who is Tom?"))
    assert capsys.readouterr().out.split(MARK + "\n") == [first, second, third, ""]
    assert second != third


def test_chat_ends_with_its_input(
    stories: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat(stories, "Hello.\n", monkeypatch)
    assert capsys.readouterr().out.count(MARK) == 1


def test_a_long_conversation_loses_its_oldest_turns(answerer: ResponseGenerator) -> None:
    """512 positions; each of these turns takes about 200."""
    turns = [user("word " * 60), assistant("word " * 60), user("word " * 60), assistant("word " * 60), user("Now?")]
    assert fitting(answerer, turns) == turns[2:]
    assert fitting(answerer, turns[-1:]) == turns[-1:]


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
def test_words_that_are_not_understood_are_repeated(command: str, words: list[str]) -> None:
    with pytest.raises(RecipeError, match=f"{command} does not understand"):
        main(command, words)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"config\.json"):
        main("chat", [str(tmp_path)])
