"""Whose directory it is: a run's own, extended perhaps, and nobody else's."""

import io
import json
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_core.cache import atomic_files
from dpo_core.config.recipe import Recipe, TrainSettings
from dpo_core.errors import RecipeError
from dpo_core.train.checkpoint import checkpoint_state, journal, run_dir, run_lock
from dpo_core.train.runtime import run_summary
from tests import tiny
from tests.train.checkpoint.test_checkpoint_writer import held

Usage = namedtuple("Usage", "total used free")


def request(path: Path, fingerprint: str = "f", lineage: str = "l", **settings: Any) -> Any:
    recipe = Recipe.model_validate({"train": settings}).model_dump(mode="json")
    source = SimpleNamespace(fingerprint="weights", path=path)
    return SimpleNamespace(
        log_path=path / "run",
        fingerprint=fingerprint,
        lineage=lineage,
        recipe=recipe,
        rendered=SimpleNamespace(fingerprint="pairs", renderer_name="role_colon"),
        model=source,
        reference=SimpleNamespace(model=source),
    )


def take(path: Path, asked: Any) -> dict[str, Any]:
    (path / "store" / "train").mkdir(parents=True, exist_ok=True)
    with run_lock.lock_run_dir(asked, run_dir.pointer_path(path / "store", asked.fingerprint)):
        told = run_dir.read_config(asked.log_path)
    assert told is not None
    return told


def test_a_run_is_extended_under_the_name_it_began_with(tmp_path: Path) -> None:
    take(tmp_path, request(tmp_path, "short", max_steps=2))
    told = take(tmp_path, request(tmp_path, "long", max_steps=4))
    assert (told["fingerprint"], told["origin"]) == ("long", "short")
    assert run_dir.origin_fingerprint(tmp_path / "run", "l", "longer") == "short"
    assert run_dir.origin_fingerprint(tmp_path / "run", "another lineage", "longer") == "longer"


def test_an_extended_run_keeps_the_token_budget_that_it_found(tmp_path: Path) -> None:
    take(tmp_path, request(tmp_path, "short"))
    log_path = tmp_path / "run"
    run_dir.write_config(log_path, (run_dir.read_config(log_path) or {}) | {"token_budget": 768})
    assert take(tmp_path, request(tmp_path, "longer"))["token_budget"] == 768


def test_another_run_is_refused(tmp_path: Path) -> None:
    take(tmp_path, request(tmp_path))
    asked = request(tmp_path, "g", lineage="other")
    with pytest.raises(RecipeError, match=r"holds run f \(made by another version of this code\), and this one is g"):
        take(tmp_path, asked)
    asked.rendered.fingerprint = "other pairs"
    with pytest.raises(RecipeError, match=r"holds run f \(with other data or rendering\), and this one is g"):
        take(tmp_path, asked)


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    take(tmp_path, request(tmp_path))
    with (
        atomic_files.locked(tmp_path / "run"),
        pytest.raises(RecipeError, match="Another process is training in"),
    ):
        take(tmp_path, request(tmp_path))


def test_a_damaged_configuration_is_written_anew_if_the_checkpoints_are_this_runs(tmp_path: Path) -> None:
    asked = request(tmp_path)
    take(tmp_path, asked)
    journal.append(asked.log_path / "metrics.jsonl", {"step": 1})
    checkpoint_state.write(asked.log_path, held(1, lineage="l", run="f"))
    (asked.log_path / "config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"config.json is damaged"):
        take(tmp_path, request(tmp_path, lineage="other"))
    assert take(tmp_path, asked)["lineage"] == "l"


@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        ({"max_steps": 10}, {"max_steps": 20}, True),
        ({"max_steps": 10}, {"max_steps": None}, True),
        ({"num_epochs": 1}, {"num_epochs": 2}, True),
        ({"max_steps": 10}, {"max_steps": 5}, False),
        ({"num_epochs": 2}, {"num_epochs": 1, "max_steps": None}, False),
        ({"max_steps": 10}, {"max_steps": 20, "dpo_beta": 0.5}, False),
    ],
)
def test_only_a_greater_length_is_settled(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # not a terminal
    take(tmp_path, request(tmp_path, **before))
    recipe = Recipe.model_validate({"train": now | {"log_path": tmp_path / "run"}})
    if allowed:
        run_dir.check_unused(recipe)
        run_dir.delete_other_run(recipe)
    else:
        for check in (run_dir.check_unused, run_dir.delete_other_run):
            with pytest.raises(RecipeError, match="holds a run with other settings"):
                check(recipe)


def test_too_little_room_is_warned_of_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = tiny.llama(), TrainSettings(save_every=1, keep_checkpoints=2)
    run = SimpleNamespace(policy=model, total_steps=10)
    session: Any = SimpleNamespace(request=SimpleNamespace(train=settings), run=run, log_path=tmp_path)
    weights = 4 * sum(p.numel() for p in model.parameters())
    for free, warned in ((weights * 10, False), (weights * 10 - 1, True)):
        monkeypatch.setattr(run_summary.shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        assert bool(run_summary.disk_warnings(session)) is warned


def test_what_config_says_is_checked_by_its_digest(tmp_path: Path) -> None:
    run_dir.write_config(tmp_path, {"fingerprint": "f", "lineage": "l", "origin": "f", "recipe": {}})
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"lineage": "m"}))
    assert run_dir.read_config(tmp_path) is None
