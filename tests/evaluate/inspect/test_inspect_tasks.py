"""Task inspection: tasks are built before generation, and digested."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_core.cache.store import Store
from dpo_core.errors import EvaluationError
from dpo_core.evaluate.inspect import inspect_tasks
from dpo_core.records import TaskContents
from dpo_core.stages.evaluation.inspect_tasks import InspectTasksRequest

TASK = """
import json
from pathlib import Path
from fable_helper import PREFIX
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.scorer import includes

HERE = Path(__file__).parent

@task
def fables():
    get_model()  # as tasks do whose scorer uses the evaluated model
    rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text().splitlines()]
    return Task([Sample(input=[ChatMessageUser(content=PREFIX + row)], target="e") for row in rows], scorer=includes())
"""


@pytest.fixture
def fables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "fables.py").write_text(TASK)
    (tmp_path / "fable_helper.py").write_text("PREFIX = 'Tell: '\n")
    (tmp_path / "rows.jsonl").write_text('"the fox"\n"the crow"\n')
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{tmp_path / 'fables.py'}@fables"
    sys.modules.pop("fable_helper", None)


def contents(directory: Path, *tasks: str, judge: str | None = None) -> dict[str, str]:
    """Digests by task. The helper is imported anew each time, as in the stage's own process."""
    sys.modules.pop("fable_helper", None)
    store = Store(directory / "store")
    with store.write("look", "once") as draft:
        inspect_tasks.run(InspectTasksRequest(tasks=tasks, judge=judge), draft)
        record = json.loads((draft.path / "record.json").read_text())
    return TaskContents.model_validate(record).digests


def test_the_digest_depends_on_samples_but_not_on_message_ids(fables: str, tmp_path: Path) -> None:
    first = contents(tmp_path, fables)
    assert contents(tmp_path, fables) == first
    (tmp_path / "rows.jsonl").write_text('"the fox"\n"the raven"\n')
    assert contents(tmp_path, fables) != first


def test_the_digest_depends_on_modules_beside_the_task(fables: str, tmp_path: Path) -> None:
    first = contents(tmp_path, fables)
    (tmp_path / "fable_helper.py").write_text("PREFIX = 'Tell: '  # a change that does not change the samples\n")
    assert contents(tmp_path, fables) != first


def test_error_of_a_missing_module_has_the_pip_command(fables: str, tmp_path: Path) -> None:
    (tmp_path / "fables.py").write_text(TASK.replace("    get_model()", "    import a_package_of_fables"))
    with pytest.raises(EvaluationError, match="pip install a_package_of_fables"):
        contents(tmp_path, fables)


def test_a_task_without_samples_is_an_error(fables: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(EvaluationError, match=r"could not be started|no samples"):
        contents(tmp_path, fables)


def test_a_judge_without_its_api_key_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(EvaluationError, match=r"The judge anthropic/.*(ANTHROPIC_API_KEY|pip install)"):
        contents(tmp_path, judge="anthropic/claude-sonnet-4-0")
