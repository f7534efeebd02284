"""The compose files: every setting passes, and every combination of files is valid."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gadfly.cli.options import variable_of
from gadfly.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
OWN_POSTGRES = {"GADFLY_DATABASE_URL": "postgresql://me:secret@host.docker.internal/gadfly"}
OWN_ENGINES = {"GADFLY_ENGINE_URLS": "https://engine:8000", "ADAPTERS_FOLDER": "/srv/adapters"}
# A setting with one value in every container: the others come from the shell or an .env file.
FIXED = {"GADFLY_HOME", "GADFLY_CACHE", "GADFLY_HOST", "GADFLY_PORT"}

COMBINATIONS = [  # overrides, variables
    ((), {}),
    (("gpu",), {}),
    (("own-postgres",), OWN_POSTGRES),
    (("own-engines",), OWN_ENGINES),
    (("own-postgres", "own-engines"), OWN_POSTGRES | OWN_ENGINES),
    ((), {"GADFLY_ACTOR_URL": "https://api.openai.com/v1", "GADFLY_ACTOR_MODEL": "gpt", "GADFLY_ACTOR_KEY": "secret"}),
]


@pytest.mark.parametrize("service", ["migrate", "engine", "service", "trainer"])
def test_every_setting_passes(service: str) -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    environment = services[service]["environment"]
    listed = {name for name in environment if name.startswith("GADFLY_")}
    assert listed == {variable_of(name) for name in Settings.model_fields}
    for name in listed - FIXED:
        assert re.fullmatch(rf"\$\{{{name}:-[^}}]*\}}", environment[name]), f"{name} has a value of its own"


@pytest.mark.parametrize("service", ["secrets", "db", "migrate", "engine", "service", "trainer"])
def test_containers_cannot_change_themselves_or_gain_rights(service: str) -> None:
    made = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"][service]
    assert made["read_only"] is True
    assert made["cap_drop"] == ["ALL"]
    assert made["security_opt"] == ["no-new-privileges:true"]
    root = {"secrets": {"CHOWN", "DAC_OVERRIDE", "FOWNER"}}  # changes owners
    root["db"] = root["secrets"] | {"SETGID", "SETUID"}  # becomes the user postgres
    assert set(made.get("cap_add", ())) == root.get(service, set())
    if service not in root:
        assert made["user"] == "${CONTAINER_USER:-10001:10001}"


def test_each_secret_is_only_where_it_is_needed() -> None:
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    mounts = {
        volume: {
            name for name, made in services.items() if any(each.startswith(f"{volume}:") for each in made["volumes"])
        }
        for volume in ("secrets", "password", "superuser")
    }
    assert mounts == {
        "secrets": {"secrets", "migrate", "service"},  # the admin key; the service's is for `docker compose exec`
        "password": {"secrets", "db", "migrate", "service", "trainer"},
        "superuser": {"secrets", "db"},
    }


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize(("overrides", "variables"), COMBINATIONS)
def test_the_files_are_valid_and_no_file_is_edited(overrides: tuple[str, ...], variables: dict[str, str]) -> None:
    made = yaml.safe_load(compose_config(overrides, variables))["services"]
    for service in ("service", "trainer"):
        environment = made[service]["environment"]
        for name, value in variables.items():
            assert environment["GADFLY_ADAPTERS" if name == "ADAPTERS_FOLDER" else name] == value
    assert (made["db"]["image"] == "gadfly-service") is ("own-postgres" in overrides)
    assert (made["engine"].get("command") == ["sleep", "infinity"]) is ("own-engines" in overrides)


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("override", ["own-postgres", "own-engines"])
def test_a_missing_address_is_named(override: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        compose_config((override,), {})
    assert "of your own" in failure.value.stderr


def compose_config(overrides: tuple[str, ...], variables: dict[str, str]) -> str:
    files = ["docker-compose.yml", *(f"docker-compose.{name}.yml" for name in overrides)]
    arguments = [argument for name in files for argument in ("-f", str(REPOSITORY / name))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GADFLY_")} | variables
    done = subprocess.run(
        ["docker-compose", *arguments, "config"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout
