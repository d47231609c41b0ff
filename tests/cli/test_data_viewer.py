"""dpo data: the report without a terminal, the pager with one; nothing is trained."""

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


def test_without_a_terminal_the_report_is_plain_and_the_command_ends(tmp_path: Path, stories: Path) -> None:
    rows = [*pair_rows(1200), *pair_rows(1), {"prompt": "p", "chosen": "same", "rejected": "same"}]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    told = dpo(tmp_path, "data", str(path), f"model_name={stories}", "renderer_name=role_colon")
    assert told.returncode == 0, told.stderr
    lines = [line.split() for line in told.stdout.splitlines()]
    assert ["read", "1082", "120"] in lines  # no separators in plain numbers
    assert ["dropped:", "duplicate", "1", "0"] in lines
    assert ["dropped:", "equal", "sides", "1", "0"] in lines
    assert "Lengths in tokens" in told.stdout
    assert "\x1b" not in told.stdout
    report = json.loads(Path(told.stdout.split("Written to ")[1].strip()).read_text())
    assert report["train"]["kept"] == 1080
    assert report["train"]["unit"] == "tokens"
    assert sum(report["train"]["lengths"]["prompt"]["histogram"]) == 1080


def test_without_a_model_lengths_are_in_characters_and_it_says_so(tmp_path: Path) -> None:
    told = dpo(tmp_path, "data", f"dataset={write_rows(tmp_path / 'pairs.jsonl', pair_rows(20))}")
    assert told.returncode == 0, told.stderr
    assert "Lengths in characters" in told.stdout
    assert "No model_name is given" in told.stdout


def test_the_same_as_a_module_and_with_a_recipe_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    (tmp_path / "mine.toml").write_text(f'dataset = "{path}"\n')
    words = [sys.executable, "-m", "dpo_core", "data", "mine.toml", "test_size=1"]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert told.returncode == 0, told.stderr
    assert ["kept", "19", "1"] in [line.split() for line in told.stdout.splitlines()]


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
def test_wrong_words_are_told_in_a_line(tmp_path: Path, words: list[str], code: int, fragment: str) -> None:
    path = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    told = dpo(tmp_path, "data", *(word.format(pairs=path) for word in words))
    assert told.returncode == code, told.stderr
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1
    assert fragment in told.stderr
    assert not (tmp_path / "runs").exists()


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=80, height=12, color_system="standard", highlight=False
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    told = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    return told


def test_keys_lead_through_pairs_and_splits() -> None:
    console = terminal()
    keys = iter(["n", "n", "p", "p", "t", "n", "x", "q"])
    data_viewer.Pager(console, {"train": 3, "test": 2}, lambda split, index: Text(f"<{split} {index}>")).run(
        lambda: next(keys)
    )
    shown = [part.split(">")[0] for part in output(console).split("<")[1:]]
    assert shown == ["train 0", "train 1", "train 0", "train 2", "test 0", "test 1", "test 1"]


def test_a_long_page_is_read_in_parts() -> None:
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
    told = output(console)
    assert "Tell me about story" in told
    assert "\x1b[32mOnce upon a time" in told
    assert "\x1b[31mNo, go away" in told


def test_token_pages_colour_what_is_trained(tmp_path: Path, stories: Path) -> None:
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
    told = output(console)
    assert "Assistant:" in told
    assert "chosen, " in told
    assert re.search(r"\x1b\[32m ?Once upon a time", told)


def test_a_tokenizer_alone_is_enough() -> None:
    recipe = Recipe.model_validate({"model": {"model_name": str(shared("tokenizers", "gpt2"))}})
    found = data_viewer.find_tokenizer(recipe)
    assert found is not None
    assert not found.has_weights
    assert data_viewer.find_tokenizer(Recipe()) is None


def test_on_a_terminal_keys_lead_through_the_pairs(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    words = [sys.executable, "-c", "from flows.cli.main import main; main()", "data", "pairs.jsonl"]
    write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    child = subprocess.Popen(words, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)

    def press(key: bytes, pattern: str) -> None:
        """Press a key, again where it came before the terminal listened, until what is shown matches."""
        told = ""
        for _ in range(100):
            os.write(ours, key)
            while select.select([ours], [], [], 0.3)[0]:
                told += os.read(ours, 4096).decode(errors="replace")
                if re.search(pattern, told):
                    return
        raise AssertionError(told)

    press(b"x", r"train 1 of 18")
    press(b"n", r"train [23] of 18")
    press(b"t", r"test 1 of 2")
    while child.poll() is None:
        os.write(ours, b"q")
        with suppress(OSError):  # the other end is closed
            if select.select([ours], [], [], 0.2)[0]:
                os.read(ours, 4096)
    assert child.returncode == 0
    os.close(ours)
