"""Data viewer: the report without a terminal, the pager on a terminal."""

import io
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from dpo_core.cli import data_viewer
from dpo_core.config.recipe import Recipe
from tests.conftest import pair_rows, shared
from tests.data.conftest import acquired, write_rows
from tests.end_to_end.test_bad_input import dpo

Writer = Callable[..., Path]


def test_without_a_terminal_the_report_is_plain_text(tmp_path: Path, stories: Path) -> None:
    rows = [*pair_rows(1200), *pair_rows(1), {"prompt": "p", "chosen": "same", "rejected": "same"}]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    process = dpo(tmp_path, "data", str(path), f"model_name={stories}", "renderer_name=role_colon")
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines()]
    assert ["read", "1082", "120"] in lines  # no separators in plain numbers
    assert ["dropped:", "duplicate", "1", "0"] in lines
    assert ["dropped:", "equal", "sides", "1", "0"] in lines
    assert "Lengths in tokens" in process.stdout
    assert "\x1b" not in process.stdout
    report = json.loads(Path(process.stdout.split("Written to ")[1].strip()).read_text())
    assert report["train"]["kept"] == 1080
    assert report["train"]["unit"] == "tokens"
    assert sum(report["train"]["lengths"]["prompt"]["histogram"]) == 1080


def test_without_a_model_lengths_are_in_characters(tmp_path: Path) -> None:
    process = dpo(tmp_path, "data", f"dataset={write_rows(tmp_path / 'pairs.jsonl', pair_rows(20))}")
    assert process.returncode == 0, process.stderr
    assert "Lengths in characters" in process.stdout
    assert "No model_name is given" in process.stdout


def test_python_m_dpo_core_data_with_a_recipe_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    (tmp_path / "mine.toml").write_text(f'dataset = "{path}"\n')
    words = [sys.executable, "-m", "dpo_core", "data", "mine.toml", "test_size=1"]
    process = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert process.returncode == 0, process.stderr
    assert ["kept", "19", "1"] in [line.split() for line in process.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        (["hhhh"], 3, "Did you mean hhh?"),
        (["nowhere.jsonl"], 3, "There is no dataset nowhere.jsonl"),
        (["hhh"], 3, "data_path=<local copy>"),
        (["no_such_module:Builder"], 2, "does not import"),
        (["{pairs}", "model_name=./nowhere"], 2, "no model directory ./nowhere"),
        (["{pairs}", "model_name=."], 2, "holds no tokenizer"),
        (["{pairs}", "prompt_colum=x"], 2, "Did you mean prompt_column?"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: list[str], code: int, fragment: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    process = dpo(tmp_path, "data", *(word.format(pairs=path) for word in words))
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert fragment in process.stderr
    assert not (tmp_path / "runs").exists()


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, height=12, color_system="standard", highlight=False
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    return text


def test_keys_move_through_pairs_and_splits() -> None:
    console = terminal()
    keys = iter(["n", "n", "p", "p", "t", "n", "x", "q"])
    data_viewer.Pager(console, {"train": 3, "test": 2}, lambda split, index: Text(f"<{split} {index}>")).run(
        lambda: next(keys)
    )
    pages = [part.split(">")[0] for part in output(console).split("<")[1:]]
    assert pages == ["train 0", "train 1", "train 0", "train 2", "test 0", "test 1", "test 1"]


def test_a_long_page_scrolls() -> None:
    console = terminal()
    pager = data_viewer.Pager(console, {"train": 1}, lambda *_: Text("\n".join(f"line {n}." for n in range(30))))
    pager.draw()
    first = output(console)
    assert "line 8." in first
    assert "line 9." not in first
    for key in ("j", "j", "j", "j", "j"):
        pager.act(key)
    pager.draw()
    last = output(console)
    assert "line 29." in last
    assert "(line 22 of 30)" in last


def test_text_pages_show_both_sides_by_role(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"data": {"dataset": str(write_rows(tmp_path / "x.jsonl", pair_rows(2000)))}})
    page = data_viewer.text_pages(acquired(tmp_path, recipe.data))
    console = terminal()
    console.print(page("train", 1500))
    text = output(console)
    assert "Tell me about story" in text
    assert "\x1b[32mOnce upon a time" in text
    assert "\x1b[31mNo, go away" in text


def test_token_pages_color_trained_tokens(tmp_path: Path, stories: Path) -> None:
    from dpo_core.cache.store import Store
    from dpo_core.records import RenderedSet
    from dpo_core.render import render
    from dpo_core.stages.render import RenderRequest

    rows = [row | {"chosen": row["chosen"] + " And so on." * 9} for row in pair_rows(20)]
    recipe = Recipe.model_validate(
        {
            "data": {"dataset": str(write_rows(tmp_path / "x.jsonl", rows))},
            "model": {"model_name": str(stories)},
            "render": {"renderer_name": "role_colon", "max_length": 80},
        }
    )
    tokenizer = data_viewer.find_tokenizer(recipe)
    assert tokenizer is not None
    store = Store(tmp_path / "store")
    with store.write("render", "key") as draft:
        pairs = acquired(tmp_path, recipe.data)
        render.run(RenderRequest(pairs=pairs, model=tokenizer, render=recipe.render), draft)
    rendered = store.find("render", "key", RenderedSet)
    assert rendered is not None
    assert rendered.train_report.truncated == rendered.truncated > 0
    console = terminal()
    console.print(data_viewer.token_pages(rendered)("train", 0))
    text = output(console)
    assert "Assistant:" in text
    assert "chosen, " in text
    assert re.search(r"\x1b\[32m ?Once upon a time", text)


def test_a_tokenizer_without_weights_is_enough() -> None:
    recipe = Recipe.model_validate({"model": {"model_name": str(shared("tokenizers", "gpt2"))}})
    tokenizer = data_viewer.find_tokenizer(recipe)
    assert tokenizer is not None
    assert not tokenizer.has_weights
    assert data_viewer.find_tokenizer(Recipe()) is None


def test_keys_on_a_real_terminal(tmp_path: Path) -> None:
    terminal_fd, child_fd = os.openpty()
    words = [sys.executable, "-c", "from flows.cli.main import main; main()", "data", "pairs.jsonl"]
    write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen(words, cwd=tmp_path, env=environment, stdin=child_fd, stdout=child_fd, stderr=child_fd)
    os.close(child_fd)

    def press(key: bytes, pattern: str) -> None:
        """Press a key until the output matches: a key pressed before the program listens is lost."""
        text = ""
        for _ in range(100):
            os.write(terminal_fd, key)
            while select.select([terminal_fd], [], [], 0.3)[0]:
                text += os.read(terminal_fd, 4096).decode(errors="replace")
                if re.search(pattern, text):
                    return
        raise AssertionError(text)

    press(b"x", r"train 1 of 18")
    press(b"n", r"train [23] of 18")
    press(b"t", r"test 1 of 2")
    while child.poll() is None:
        os.write(terminal_fd, b"q")
        with suppress(OSError):  # the other end is closed
            if select.select([terminal_fd], [], [], 0.2)[0]:
                os.read(terminal_fd, 4096)
    assert child.returncode == 0
    os.close(terminal_fd)
