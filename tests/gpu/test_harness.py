"""``make gpu`` itself, without a GPU: parts that pass, fail and are cut off, and its pipeline on a tiny model."""

import time
from pathlib import Path

import pytest

from tests.gpu import __main__ as harness
from tests.gpu import pipeline
from tests.gpu.__main__ import PARTS, Part, figure_of, groups, run

FOREVER = time.monotonic() + 1e6


def part(code: str, seconds: float = 60, name: str = "a part") -> Part:
    return Part(name, ("-c", code), seconds)


def test_a_part_that_passes_tells_its_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("print('figure: 7 pairs/s')")], tmp_path, tmp_path / "logs", FOREVER) == 0
    out = capsys.readouterr().out
    assert out.startswith("PASS")
    assert out.rstrip().endswith("a part: 7 pairs/s")


def test_a_part_that_fails_shows_the_end_of_what_it_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("raise SystemExit('no kernel')")], tmp_path, tmp_path / "logs", FOREVER) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("FAIL")
    assert first.endswith("a part: no kernel")
    assert second.strip() == "no kernel"


def test_a_part_that_takes_too_long_is_ended_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = part("import time; print('so far', flush=True); time.sleep(600)", 1.0, "slow")
    quick = part("print('figure: done')", name="quick")
    assert run([slow, quick], tmp_path, tmp_path / "logs", FOREVER) == 1
    out = capsys.readouterr().out
    assert "quick: done" in out
    assert "slow: so far" in out


def test_what_no_time_is_left_for_has_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([part("print('figure: 1')")], tmp_path, tmp_path / "logs", time.monotonic() - 1) == 1
    assert "no time was left" in capsys.readouterr().out


def test_a_benchmarks_line_is_told_in_short_and_nothing_measured_is_a_failure() -> None:
    line = (
        '{"contenders": {"ours": {"pairs_per_s": 289.8, "peak_gb": 48.3, "layout": "tree", "losses": [0.6931, 0.69]}}}'
    )
    assert figure_of(["x", line]) == "ours: 289.8 pairs/s, 48.3 GB, layout tree, loss 0.69310"
    assert figure_of(['{"contenders": {}}']) is None


def test_what_is_timed_runs_alone_and_the_pipelines_come_first() -> None:
    first, *others = groups(list(PARTS))
    assert [one.name.partition(",")[0] for one in first] == ["pipeline", "pipeline", "laws"]
    assert all(len(group) == 1 and group[0].alone for group in others)
    assert sum(max(one.seconds for one in group) for group in [first]) <= 8 * 60
    assert all(Path(harness.ROOT / one.words[0]).is_file() for one in PARTS if one.words[0].endswith(".py"))


@pytest.mark.slow
def test_the_pipeline_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in training and continued, then trained in four other ways: by the command, on what device there is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    figure = pipeline.run_lora(tmp_path / "work", ["shape=tiny", "sft_steps=5"])
    assert "continued, tree layout" in figure
    assert figure.endswith("4 other ways start at ln 2")
