"""The cache: an output that exists is whole, or it is not an output."""

from pathlib import Path

import pytest

from dpo_core.records import DataReport
from dpo_core.store import Store

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


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.write("stage", "key") as draft:
            (draft.path / "part.txt").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert list((tmp_path / "stage").iterdir()) == []


def test_of_two_writers_the_first_stands(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.write("stage", "key") as slow:
        fill(store, "first")
        (slow.path / "part.txt").write_text("second")
        slow.publish(RECORD)
    assert (store.entry("stage", "key") / "part.txt").read_text() == "first"


def test_files_elsewhere_belong_to_the_output(tmp_path: Path) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "run.txt"
    outside.write_text("journal")
    with store.write("stage", "key") as draft:
        draft.publish(RECORD, elsewhere=[outside])
    assert store.find("stage", "key", DataReport) == RECORD
    outside.unlink()
    assert store.find("stage", "key", DataReport) is None
