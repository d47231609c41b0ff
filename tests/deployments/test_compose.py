"""The compose file: health checks, logins, secrets, ports and volumes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FOLDER = ROOT / "deployments"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
ONCE = {"bucket", "prefect-migrate", "deploy"}
EXAMPLE = (FOLDER / ".env.example").read_text()
VARIABLES = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_the_example_lists_exactly_the_variables_that_are_used() -> None:
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", TEXT)) == set(VARIABLES)


def test_a_secret_has_no_default_and_must_be_set() -> None:
    secret = [name for name in VARIABLES if re.search("PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|TOKEN|WEBHOOK", name)]
    assert len(secret) >= 7
    assert [name for name in secret if VARIABLES[name]] == []
    for name in set(secret) - {"HF_TOKEN", "FAILURE_WEBHOOK_URL"}:
        assert set(re.findall(rf"\$\{{{name}(.*?)\}}", TEXT)) == {":?set it in .env"}, name


@pytest.mark.parametrize("name", sorted(set(SERVICES) - ONCE - {"prefect-services"}))
def test_a_permanent_service_is_restarted_and_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or "HEALTH_URL" in service["environment"]


def test_a_service_waits_until_its_dependencies_are_ready() -> None:
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == ("service_completed_successfully" if name in ONCE else "service_healthy")


def test_ports_are_open_on_the_loopback_device_by_default() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("${BIND_ADDRESS:-127.0.0.1}:") for port in ports)


def test_the_servers_ask_for_a_login_and_keep_their_records_in_postgres() -> None:
    prefect, mlflow = SERVICES["prefect"]["environment"], SERVICES["mlflow"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in prefect
    assert prefect["PREFECT_API_DATABASE_CONNECTION_URL"].startswith("postgresql+asyncpg://")
    assert mlflow["command"][mlflow["command"].index("--app-name") + 1] == "basic-auth"
    assert mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"].startswith("postgresql")
    assert "postgresql" in COMPOSE["configs"]["mlflow-auth"]["content"]


def test_named_volumes_and_configs_are_declared() -> None:
    mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert set(mounts) == set(COMPOSE["volumes"])
    configs = [config["source"] for service in SERVICES.values() for config in service.get("configs", [])]
    assert set(configs) == set(COMPOSE["configs"])


def test_the_image_ends_without_root_pip_or_build_stage() -> None:
    stages = re.split(r"^FROM ", Path(ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    final = {stage.split()[2]: stage for stage in stages if stage.startswith("runtime ")}
    assert final.keys() == {"cpu", "cuda", "servers"}
    [runtime] = [stage for stage in stages if stage.split()[2] == "runtime"]
    assert re.search(r"^USER 1000$", runtime, re.MULTILINE)
    for stage in final.values():
        assert "HEALTHCHECK" in stage
        assert not re.search(r"^(RUN|USER)", stage, re.MULTILINE)
