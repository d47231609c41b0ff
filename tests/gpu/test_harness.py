"""The harness of ``make gpu`` without a GPU: passing, failing and late parts, and its pipeline on a tiny model."""

import time
from pathlib import Path

import pytest

from tests.gpu import __main__ as harness
from tests.gpu import pipeline
from tests.gpu.__main__ import PARTS, Part, figure_of, groups, run

NO_DEADLINE = time.monotonic() + 1e6


def part(code: str, seconds: float = 60, name: str = "a part") -> Part:
    return Part(name, ("-c", code), seconds)


def test_a_part_that_passes_prints_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("print('figure: 7 pairs/s')")], tmp_path, tmp_path / "logs", NO_DEADLINE) == 0
    out = capsys.readouterr().out
    assert out.startswith("PASS")
    assert out.rstrip().endswith("a part: 7 pairs/s")


def test_a_part_that_fails_prints_the_end_of_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("raise SystemExit('no kernel')")], tmp_path, tmp_path / "logs", NO_DEADLINE) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL")
    assert first.endswith("a part: no kernel")
    assert second.strip() == "no kernel"


def test_a_part_that_exceeds_its_limit_is_killed_and_the_others_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = part("import time; print('so far', flush=True); time.sleep(600)", 1.0, "slow")
    quick = part("print('figure: done')", name="quick")
    assert run([slow, quick], tmp_path, tmp_path / "logs", NO_DEADLINE) == 1
    out = capsys.readouterr().out
    assert "quick: done" in out
    assert "slow: so far" in out


def test_a_part_without_time_left_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("print('figure: 1')")], tmp_path, tmp_path / "logs", time.monotonic() - 1) == 1
    assert "no time was left" in capsys.readouterr().out


def test_a_benchmarks_json_is_summarized_and_an_empty_one_is_a_failure() -> None:
    line = (
        '{"contenders": {"ours": {"pairs_per_s": 289.8, "peak_gb": 48.3, "layout": "tree", "losses": [0.6931, 0.69]}}}'
    )
    assert figure_of(["x", line]) == "ours: 289.8 pairs/s, 48.3 GB, layout tree, loss 0.69310"
    assert figure_of(['{"contenders": {}}']) is None


def test_timed_parts_run_alone_and_the_pipelines_come_first() -> None:
    first, *others = groups(list(PARTS))
    assert [entry.name.partition(",")[0] for entry in first] == ["pipeline", "pipeline", "laws"]
    assert all(len(group) == 1 and group[0].alone for group in others)
    assert sum(max(entry.seconds for entry in group) for group in [first]) <= 8 * 60
    assert all(Path(harness.ROOT / entry.words[0]).is_file() for entry in PARTS if entry.words[0].endswith(".py"))


@pytest.mark.slow
def test_the_pipeline_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in training and continued, with four other configurations, by the command."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    figure = pipeline.run_lora(tmp_path / "work", ["shape=tiny", "sft_steps=5"])
    assert "continued, tree layout" in figure
    assert figure.endswith("4 other ways start at ln 2")
