"""Store of stage outputs: an output that exists is complete."""

from pathlib import Path
from threading import Thread

import pytest

from dpo_core.cache import atomic_files
from dpo_core.cache.store import Store
from dpo_core.records import DataReport, Lengths

RECORD = DataReport(rows_read=3, kept=2, dropped={"tie": 1})


def fill(store: Store, text: str = "data") -> Path:
    with store.write("stage", "key") as draft:
        (draft.path / "part.txt").write_text(text)
        draft.publish(RECORD)
    return store.entry("stage", "key")


def test_an_output_is_found_as_it_was_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("stage", "key", DataReport) is None
    fill(store)
    assert store.find("stage", "key", DataReport) == RECORD


@pytest.mark.parametrize("name", ["part.txt", "record.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["delete", "flip", "cut"])
def test_a_damaged_output_is_put_aside(tmp_path: Path, name: str, harm: str) -> None:
    store = Store(tmp_path)
    path = fill(store) / name
    data = bytearray(path.read_bytes())
    if harm == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data) if harm == "flip" else bytes(data[: len(data) // 2]))
    assert store.find("stage", "key", DataReport) is None
    assert not store.entry("stage", "key").exists()
    fill(store)
    assert store.find("stage", "key", DataReport) == RECORD


def test_an_output_of_another_release_is_made_again(tmp_path: Path) -> None:
    """Complete, but its record lacks fields of the current release."""
    store = Store(tmp_path)
    with store.write("stage", "key") as draft:
        draft.publish(Lengths(mean=1.0, quantiles={}, histogram=()))
    assert store.find("stage", "key", DataReport) is None
    fill(store)
    assert store.find("stage", "key", DataReport) == RECORD


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.write("stage", "key") as draft:
            (draft.path / "part.txt").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list((tmp_path / "stage").iterdir()) == []


def test_a_second_writer_waits_and_finds_the_output_of_the_first(tmp_path: Path) -> None:
    store, there = Store(tmp_path), []

    def second() -> None:
        with store.write("stage", "key") as draft:
            there.append(draft.there)

    with store.write("stage", "key") as first:
        waiting = Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (first.path / "part.txt").write_text("first")
        first.publish(RECORD)
    waiting.join(10)
    assert there == [True]
    assert (store.entry("stage", "key") / "part.txt").read_text() == "first"
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


def test_drafts_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "stage" / ".key.draft-0"
    left.mkdir(parents=True)
    (tmp_path / "stage" / ".key.lock").touch()
    fill(Store(tmp_path))
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["key"]


def test_a_lock_that_is_not_waited_for_is_refused(tmp_path: Path) -> None:
    with atomic_files.locked(tmp_path), pytest.raises(BlockingIOError), atomic_files.locked(tmp_path, wait=False):
        pass
    with atomic_files.locked(tmp_path, wait=False) as waited:
        assert not waited


def test_files_elsewhere_belong_to_the_output(tmp_path: Path) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "run.txt"
    outside.write_text("journal")
    with store.write("stage", "key") as draft:
        draft.publish(RECORD, elsewhere=[outside])
    assert store.find("stage", "key", DataReport) == RECORD
    outside.unlink()
    assert store.find("stage", "key", DataReport) is None
