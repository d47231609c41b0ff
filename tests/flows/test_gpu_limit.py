"""GPU limit: which stages request a slot from Prefect's server."""

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from dpo_core.stages import STAGES
from flows import gpu_limit

ADDRESS = "http://127.0.0.1:9/api"


class SlotRequestedError(Exception):
    """A slot was requested."""


@pytest.fixture
def slot_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(*_: object, **__: object) -> None:
        raise SlotRequestedError

    monkeypatch.setattr(gpu_limit, "concurrency", request)


@pytest.mark.usefixtures("slot_requests")
@pytest.mark.parametrize(("address", "stage"), [(None, "train"), (ADDRESS, "render")])
def test_no_slot_is_requested_without_a_server_or_without_a_gpu(address: str | None, stage: str) -> None:
    with temporary_settings({PREFECT_API_URL: address}), gpu_limit.gpu_slot(STAGES[stage]):
        pass


@pytest.mark.usefixtures("slot_requests")
def test_a_gpu_stage_requests_a_slot_from_the_server() -> None:
    with (
        temporary_settings({PREFECT_API_URL: ADDRESS}),
        pytest.raises(SlotRequestedError),
        gpu_limit.gpu_slot(STAGES["train"]),
    ):
        pass
