"""A planted secret is in no output of a run: no file, log, parameter, artifact or database."""

from pathlib import Path

import pytest

from flows.cli import ui
from tests.end_to_end.test_flow import Place, free_port

SECRETS = {"token": "hf_PLANTEDTOKENplantedtoken", "password": "PLANTED-password"}


@pytest.mark.slow
def test_tokens_and_passwords_stay_out_of_every_output(tmp_path: Path) -> None:
    place = Place(tmp_path)
    with ui.running_server(f"sqlite:///{tmp_path / 'served.db'}", free_port()) as (_, address):
        secret = address.replace("http://", f"http://me:{SECRETS['password']}@")
        output = place.run(f"tracking_uri={secret}", HF_TOKEN=SECRETS["token"], HUGGING_FACE_HUB_TOKEN=SECRETS["token"])
    assert "dpo chat" in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 50
    found = [
        (str(path.relative_to(tmp_path)), name)
        for path in files
        for name, value in SECRETS.items()
        if value.encode() in path.read_bytes()
    ]
    assert found == []
    assert [name for name, value in SECRETS.items() if value in output] == []
