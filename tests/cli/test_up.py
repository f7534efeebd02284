"""`gadfly up`: refusals before the start, and the whole stack from start through kill -9 to a restart."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gadfly.cli.up import check_disk, check_keys_possible, check_port, engine_socket, example
from gadfly.cli.up_state import MARK, UpState, is_over, marked
from gadfly.errors import BadSettings
from gadfly.settings import Settings
from tests.cli.conftest import FakeServer
from tests.support.engines import made_default_model
from tests.support.services import free_port
from tests.support.tiny_models import random_model

REPOSITORY = Path(__file__).parents[2]
START_LIMIT_S = 240  # the engine's imports alone take half a minute on a slow machine


def without_settings() -> dict[str, str]:
    """The calling environment: `no_variables` does not apply to a fixture of the module."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("GADFLY_")}


class Up:
    """`gadfly up` in a child process, and the commands that call it."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        self.flags = flags
        self.log = home.parent / "up.log"
        self.url = f"http://127.0.0.1:{flags[flags.index('--port') + 1]}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gadfly.cli.main", "up", "--home", str(self.home), *self.flags],
                env=without_settings() | {"OMP_NUM_THREADS": "1"},  # tests share the machine
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
            )
        return self.process

    def until_ready(self) -> UpState:
        assert self.process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while b"Ctrl-C stops it" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        state = UpState.read(self.home)
        assert state is not None
        return state

    def gadfly(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "gadfly.cli.main", *arguments, "--home", str(self.home)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.gadfly("status", "--json").stdout)
        return answer

    def end(self) -> None:
        """End all processes, whatever the test's outcome."""
        state = UpState.read(self.home)
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
            self.process.kill()
            self.process.wait()
        for left in marked(state.mark) if state is not None else []:
            with contextlib.suppress(psutil.Error):
                left.kill()


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    made: list[Up] = []

    def make(*flags: str) -> Up:
        made.append(Up(tmp_path / "home", *flags))
        return made[-1]

    yield make
    for up in made:
        up.end()


@pytest.fixture(scope="module")
def running_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The whole stack with the default model, started once; the last test stops it."""
    made_default_model()  # in the folder that all deployments of a machine share
    up = Up(tmp_path_factory.mktemp("up") / "home", "--port", str(free_port()), "--max-tokens", "64")
    up.start()
    up.until_ready()
    yield up
    up.end()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process of this home folder: those with the mark, and Postgres, which drops it."""
    state = UpState.read(home)
    found = marked(state.mark) if state is not None else []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(home):
                found.append(process)
    return found


def gone(processes: list[psutil.Process], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not all(map(is_over, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.timeout(900)  # may include making the model
def test_the_default_model_judges_and_rewrites(running_up: Up) -> None:
    """A new user's first calls, with the default model."""
    body = {
        "question": "Mia buys 4 boxes of 6 eggs and drops 5 of the eggs. How many are left?",
        "response": "She buys 4 * 6 = 24 eggs. Now she has 24 + 5 = 29 eggs. The answer is 29.",
        "reference": "19",
        "temperature": 0,
    }
    with httpx.Client(base_url=running_up.url, timeout=300) as client:
        judged = client.post("/critique", json=body).json()
        assert judged["critique"].startswith("Step sentence: ")
        assert judged["steps"][0]["text"] in judged["critique"]
        assert judged["verdict"] in ("correct", "incorrect")
        assert 0.5 <= judged["confidence"] <= 1
        assert judged["grade"] == "wrong"
        rewritten = client.post("/refine", json={**body, "critique_id": judged["critiques"][0]["id"]}).json()
        assert "eggs" in rewritten["refined_response"]
        feedback = {
            "interaction_id": rewritten["id"],
            "correct": False,
            "edited_response": "24 - 5 = 19. The answer is 19.",
        }
        client.post("/feedback", json=feedback).raise_for_status()
        stored = client.get(f"/interactions/{rewritten['id']}").json()
        assert stored["result"] == rewritten
        assert stored["feedback"][0]["edited_response"] == feedback["edited_response"]


# Its engine starts three times, the first time in the fixture.
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals children when their parent ends")
def test_the_whole_stack_starts_answers_survives_kill_9_and_stops(running_up: Up) -> None:
    up = running_up
    process = up.process
    assert process is not None
    assert f"{up.url}/critique" in up.log.read_text()
    assert "critic@0, untrained: the base model as it is" in up.log.read_text()

    before = up.status()  # the test before has stored rows
    judged = up.gadfly("critique", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2", "--json")
    assert judged.returncode == 0, judged.stderr
    answer = json.loads(judged.stdout)
    assert answer["critic"] == {"version": 0, "adapter_sha256": None, "status": "untrained"}
    streamed = up.gadfly("critique", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2")
    assert "critic@0" in streamed.stdout, streamed.stderr
    refined = up.gadfly("refine", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2")
    assert "refined response" in refined.stdout, refined.stderr
    feedback = up.gadfly("feedback", answer["id"], "--incorrect", "--comment", "no")
    assert f"stored for interaction {answer['id']}" in feedback.stdout, feedback.stderr

    status = up.status()
    assert [part["role"] for part in status["processes"]] == ["gadfly up", "database", "engine", "service", "trainer"]
    assert all(part["alive"] for part in status["processes"])
    assert status["service"]["ready"]
    critiques = before["rows"]["interactions"].get("critique", 0) + 2
    assert status["rows"]["interactions"]["critique"] == critiques
    assert status["rows"]["feedback"] == before["rows"]["feedback"] + 1
    assert status["scoreboard"]["answers"] == before["scoreboard"]["answers"] + 1
    assert status["scoreboard"]["wrong"]["of"] == before["scoreboard"]["wrong"]["of"] + 1
    shown = up.gadfly("status").stdout
    assert "critic@0 is live and untrained" in shown
    assert f"on {status['scoreboard']['answers']} labelled answer" in shown
    doctor = up.gadfly("doctor")
    assert doctor.returncode == 0, doctor.stdout

    second = up.gadfly("up")
    assert second.returncode == 1
    assert f"already running on {up.home} (process {process.pid}" in second.stderr

    running = processes_of(up.home)
    assert len(running) >= 5  # Postgres and its parent, engine, service, trainer
    process.kill()
    process.wait()
    assert gone(running, within_s=60), [left.cmdline() for left in running if not is_over(left)]

    process = up.start()
    state = up.until_ready()
    running = processes_of(up.home)
    assert up.status()["rows"]["interactions"]["critique"] == critiques, "acknowledged interactions are still stored"

    engine = next(part for part in state.processes if part.role == "engine")
    os.kill(engine.pid, signal.SIGKILL)
    response = httpx.post(f"{state.service_url}/critique", json={"question": "q", "response": "r"}, timeout=60)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    deadline = time.monotonic() + START_LIMIT_S
    while response.status_code == 503:
        assert time.monotonic() < deadline, "a crashed engine is restarted"
        time.sleep(0.5)
        response = httpx.post(f"{state.service_url}/critique", json={"question": "q", "response": "r"}, timeout=60)
    assert response.status_code == 200
    running = processes_of(up.home)

    process.terminate()
    assert process.wait(90) == 0
    log = up.log.read_text()
    assert log.index("stopping the service") < log.index("stopping the database")
    assert gone(running, within_s=5), [left.cmdline() for left in running if not is_over(left)]
    assert UpState.read(up.home) is None


def refusal(up: Up) -> str:
    """The last line of an `up` that refuses to start."""
    process = up.start()
    assert process.wait(90) != 0
    lines = up.log.read_text().splitlines()
    assert "Traceback" not in up.log.read_text()
    assert gone(processes_of(up.home), within_s=5)
    return lines[-1]


def test_a_missing_model_is_reported_by_the_engine_and_passed_on(free_port: int, make_up: Callable[..., Up]) -> None:
    sentence = refusal(make_up("--port", str(free_port), "--model", "/no/such/model"))
    assert sentence == "error: The engine does not start: There is no model folder /no/such/model."


def test_too_little_memory_is_reported_by_the_engine_and_passed_on(
    tmp_path: Path, free_port: int, make_up: Callable[..., Up]
) -> None:
    model = random_model(tmp_path / "model")
    flags = ("--port", str(free_port), "--model", str(model), "--engine-kv-cache-bytes", str(2**50))
    assert "GiB of memory" in refusal(make_up(*flags))


def test_an_open_address_without_keys_is_refused(free_port: int, make_up: Callable[..., Up]) -> None:
    up = make_up("--port", str(free_port), "--host", "0.0.0.0")
    assert "there is no key yet" in refusal(up)
    assert not (up.home / "postgres").exists(), "refused before any process is started"
    assert up.gadfly("keys", "create", "--tier", "admin", "--name", "me").returncode == 0
    assert up.gadfly("keys", "revoke", "me").returncode == 0
    assert "there is no key yet" in refusal(up), "a revoked key does not count"


def test_a_taken_port_is_refused_before_any_process_starts(
    another_program: FakeServer, make_up: Callable[..., Up]
) -> None:
    up = make_up("--port", str(another_program.port))
    assert refusal(up).startswith(f"error: Port {another_program.port} is taken")
    assert not (up.home / "postgres").exists()


def test_an_unavailable_database_is_one_sentence(free_port: int, make_up: Callable[..., Up]) -> None:
    up = make_up("--port", str(free_port), "--database-url", f"postgresql://127.0.0.1:{free_port}/x")
    assert "Postgres is unavailable" in refusal(up)


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_disk(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    with pytest.raises(Exception, match=r"has 1 MiB free and at least 300 are needed"):
        check_disk(tmp_path)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("203.0.113.7", "cannot listen on 203.0.113.7"),
        ("no-such-host.invalid", "cannot listen on no-such-host.invalid"),
    ],
)
def test_an_address_of_another_machine_is_one_sentence(host: str, words: str, free_port: int) -> None:
    with pytest.raises(BadSettings, match=words):
        check_port(Settings(host=host, port=free_port))


def test_keys_are_required_only_for_reachable_addresses(tmp_path: Path) -> None:
    check_keys_possible(Settings(home=tmp_path))
    check_keys_possible(Settings(home=tmp_path, host="0.0.0.0", database_url="postgresql://db/x"))
    with pytest.raises(BadSettings, match="gadfly keys create"):
        check_keys_possible(Settings(home=tmp_path, host="0.0.0.0"))


def test_a_long_socket_path_is_replaced_by_a_short_one() -> None:
    assert engine_socket(Path("/data/gadfly")) == Path("/data/gadfly/run/engine.sock")
    long = engine_socket(Path("/data") / ("x" * 100))
    assert len(os.fsencode(long)) <= 107
    assert long == engine_socket(Path("/data") / ("x" * 100))
    assert long != engine_socket(Path("/data") / ("y" * 100))


def test_the_example_is_a_shell_command() -> None:
    words = shlex.split(example("http://127.0.0.1:8400", with_key=False))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8400/critique"]
    assert set(json.loads(words[-1])) == {"question", "response"}
    assert "authorization: Bearer YOUR_KEY" in shlex.split(example("http://x", with_key=True))


def test_the_mark_is_not_a_setting() -> None:
    assert MARK.removeprefix("GADFLY_").casefold() not in Settings.model_fields
