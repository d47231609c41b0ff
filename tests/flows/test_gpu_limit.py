"""Whose turn it is: who asks Prefect's server, and who does not."""

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from dpo_core.stages import STAGES
from flows import gpu_limit

ADDRESS = "http://127.0.0.1:9/api"


class AskedError(Exception):
    """The server was asked."""


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AskedError

    monkeypatch.setattr(gpu_limit, "concurrency", ask)


@pytest.mark.usefixtures("asking")
@pytest.mark.parametrize(("address", "stage"), [(None, "train"), (ADDRESS, "render")])
def test_a_run_of_its_own_and_a_stage_without_a_gpu_ask_nobody(address: str | None, stage: str) -> None:
    with temporary_settings({PREFECT_API_URL: address}), gpu_limit.gpu_slot(STAGES[stage]):
        pass


@pytest.mark.usefixtures("asking")
def test_a_stage_that_computes_asks_the_teams_server() -> None:
    with temporary_settings({PREFECT_API_URL: ADDRESS}), pytest.raises(AskedError), gpu_limit.gpu_slot(STAGES["train"]):
        pass
