"""`gadfly up`: what it refuses at once, and the whole stack from start to kill -9 and back."""

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

from gadfly.cli.running import MARK, RunState, is_over, marked
from gadfly.cli.up import check_disk, check_keys_possible, check_port, engine_socket, example
from gadfly.errors import BadSettings
from gadfly.settings import Settings
from tests.cli.conftest import FakeServer
from tests.support.engines import made_default_model
from tests.support.tiny_models import random_model

REPOSITORY = Path(__file__).parents[2]
START_LIMIT_S = 240  # the engine imports for half a minute on a slow machine


class Up:
    """`gadfly up` in a process of its own, and the commands that talk to it."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        self.flags = flags
        self.log = home.parent / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gadfly.cli.main", "up", "--home", str(self.home), *self.flags],
                env={**os.environ, "OMP_NUM_THREADS": "1"},  # tests share their machine
                cwd=REPOSITORY,
                stdout=log,
                stderr=log,
            )
        return self.process

    def until_ready(self) -> RunState:
        assert self.process is not None
        deadline = time.monotonic() + START_LIMIT_S
        while b"Ctrl-C stops it" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)
        state = RunState.read(self.home)
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

    def end(self) -> None:
        """Whatever happened, leave nothing running."""
        state = RunState.read(self.home)
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


def ours(home: Path) -> list[psutil.Process]:
    """Every process that works for this home folder: those with the mark, and Postgres, which loses it."""
    state = RunState.read(home)
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


@pytest.mark.timeout(900)  # the model may have to be made first
def test_the_default_model_judges_and_rewrites(tmp_path: Path, free_port: int, make_up: Callable[..., Up]) -> None:
    """What a stranger does first, with the language model that a stranger gets."""
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    made = made_default_model()
    (models / made.name).symlink_to(made)
    up = make_up("--port", str(free_port), "--max-tokens", "64")
    up.start()
    up.until_ready()
    asked = {
        "question": "Mia buys 4 boxes of 6 eggs and drops 5 of the eggs. How many are left?",
        "response": "She buys 4 * 6 = 24 eggs. Now she has 24 + 5 = 29 eggs. The answer is 29.",
        "reference": "19",
        "temperature": 0,
    }
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=300) as client:
        judged = client.post("/critique", json=asked).json()
        assert judged["critique"].startswith("Step sentence: ")
        assert judged["steps"][0]["text"] in judged["critique"]
        assert judged["verdict"] in ("correct", "incorrect")
        assert 0.5 <= judged["confidence"] <= 1
        assert judged["grade"] == "wrong"
        rewritten = client.post("/refine", json={**asked, "critique_id": judged["critiques"][0]["id"]}).json()
        assert "eggs" in rewritten["refined_response"]
        told = {
            "interaction_id": rewritten["id"],
            "correct": False,
            "edited_response": "24 - 5 = 19. The answer is 19.",
        }
        client.post("/feedback", json=told).raise_for_status()
        kept = client.get(f"/interactions/{rewritten['id']}").json()
        assert kept["result"] == rewritten
        assert kept["feedback"][0]["edited_response"] == told["edited_response"]


# Three times an engine, from import to the first token.
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent ended")
def test_the_whole_stack_starts_answers_survives_kill_9_and_stops(
    tmp_path: Path, free_port: int, make_up: Callable[..., Up]
) -> None:
    model = random_model(tmp_path / "model")
    flags = (
        "--port",
        str(free_port),
        "--model",
        str(model),
        "--engine-kv-cache-bytes",
        str(2**26),
        "--max-tokens",
        "16",
    )
    up = make_up(*flags)
    process = up.start()
    up.until_ready()
    assert f"http://127.0.0.1:{free_port}/critique" in up.log.read_text()

    asked = up.gadfly("critique", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["critic"] == {"version": 0, "adapter_sha256": None}
    streamed = up.gadfly("critique", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2")
    assert "critic@0" in streamed.stdout, streamed.stderr
    refined = up.gadfly("refine", "-q", "What is 1 + 1?", "-r", "3", "--reference", "2")
    assert "refined response" in refined.stdout, refined.stderr
    told = up.gadfly("feedback", answer["id"], "--incorrect", "--comment", "no")
    assert "kept as feedback" in told.stdout, told.stderr

    status: dict[str, Any] = json.loads(up.gadfly("status", "--json").stdout)
    assert [part["role"] for part in status["processes"]] == ["gadfly up", "database", "engine", "service", "trainer"]
    assert all(part["alive"] for part in status["processes"])
    assert status["service"]["ready"]
    assert status["rows"]["interactions"]["critique"] == 2
    assert status["rows"]["feedback"] == 1
    doctor = up.gadfly("doctor", "--model", str(model))
    assert doctor.returncode == 0, doctor.stdout

    second = up.gadfly("up")
    assert second.returncode == 1
    assert f"already running on {up.home} (process {process.pid}" in second.stderr

    running = ours(up.home)
    assert len(running) >= 5  # keeper, Postgres, engine, service, trainer
    process.kill()
    process.wait()
    assert gone(running, within_s=60), [left.cmdline() for left in running if not is_over(left)]

    process = up.start()
    state = up.until_ready()
    running = ours(up.home)
    status = json.loads(up.gadfly("status", "--json").stdout)
    assert status["rows"]["interactions"]["critique"] == 2, "what was acknowledged is still there"

    engine = next(part for part in state.processes if part.role == "engine")
    os.kill(engine.pid, signal.SIGKILL)
    away = httpx.post(f"{state.service_url}/critique", json={"question": "q", "response": "r"}, timeout=60)
    assert away.status_code == 503
    assert int(away.headers["retry-after"]) >= 1
    deadline = time.monotonic() + START_LIMIT_S
    while away.status_code == 503:
        assert time.monotonic() < deadline, "a crashed engine is started again"
        time.sleep(0.5)
        away = httpx.post(f"{state.service_url}/critique", json={"question": "q", "response": "r"}, timeout=60)
    assert away.status_code == 200
    running = ours(up.home)

    process.terminate()
    assert process.wait(90) == 0
    said = up.log.read_text()
    assert said.index("stopping the service") < said.index("stopping the database")
    assert gone(running, within_s=5), [left.cmdline() for left in running if not is_over(left)]
    assert RunState.read(up.home) is None


def refusal(up: Up) -> str:
    """The one sentence with which it ended."""
    process = up.start()
    assert process.wait(90) != 0
    lines = up.log.read_text().splitlines()
    assert "Traceback" not in up.log.read_text()
    assert gone(ours(up.home), within_s=5)
    return lines[-1]


def test_a_missing_model_is_said_by_the_engine_and_passed_on(free_port: int, make_up: Callable[..., Up]) -> None:
    sentence = refusal(make_up("--port", str(free_port), "--model", "/no/such/model"))
    assert sentence == "error: The engine does not start: There is no model folder /no/such/model."


def test_too_little_memory_is_said_by_the_engine_and_passed_on(
    tmp_path: Path, free_port: int, make_up: Callable[..., Up]
) -> None:
    model = random_model(tmp_path / "model")
    flags = ("--port", str(free_port), "--model", str(model), "--engine-kv-cache-bytes", str(2**50))
    assert "GiB of memory" in refusal(make_up(*flags))


def test_an_open_address_without_keys_is_refused(free_port: int, make_up: Callable[..., Up]) -> None:
    up = make_up("--port", str(free_port), "--host", "0.0.0.0")
    assert "there is no key yet" in refusal(up)
    assert not (up.home / "postgres").exists(), "before anything was started"
    assert up.gadfly("keys", "create", "--tier", "admin", "--name", "me").returncode == 0
    assert up.gadfly("keys", "revoke", "me").returncode == 0
    assert "there is no key yet" in refusal(up), "a key that is over opens nothing"


def test_a_taken_port_is_refused_before_anything_starts(
    another_program: FakeServer, make_up: Callable[..., Up]
) -> None:
    up = make_up("--port", str(another_program.port))
    assert refusal(up).startswith(f"error: Port {another_program.port} is taken")
    assert not (up.home / "postgres").exists()


def test_a_database_that_is_away_is_a_sentence(free_port: int, make_up: Callable[..., Up]) -> None:
    up = make_up("--port", str(free_port), "--database-url", f"postgresql://127.0.0.1:{free_port}/x")
    assert "Postgres is unavailable" in refusal(up)


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_address_of_another_machine_is_a_sentence(host: str, words: str, free_port: int) -> None:
    with pytest.raises(BadSettings, match=words):
        check_port(Settings(host=host, port=free_port))


def test_keys_are_only_asked_for_where_others_can_come_in(tmp_path: Path) -> None:
    check_keys_possible(Settings(home=tmp_path))
    check_keys_possible(Settings(home=tmp_path, host="0.0.0.0", database_url="postgresql://db/x"))
    with pytest.raises(BadSettings, match="gadfly keys create"):
        check_keys_possible(Settings(home=tmp_path, host="0.0.0.0"))


def test_a_socket_path_that_is_too_long_gets_a_short_one() -> None:
    assert engine_socket(Path("/data/gadfly")) == Path("/data/gadfly/run/engine.sock")
    long = engine_socket(Path("/data") / ("x" * 100))
    assert len(os.fsencode(long)) <= 107
    assert long == engine_socket(Path("/data") / ("x" * 100))
    assert long != engine_socket(Path("/data") / ("y" * 100))


def test_the_example_is_a_line_for_the_shell() -> None:
    words = shlex.split(example("http://127.0.0.1:8400", with_key=False))
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:8400/critique"]
    assert set(json.loads(words[-1])) == {"question", "response"}
    assert "authorization: Bearer YOUR_KEY" in shlex.split(example("http://x", with_key=True))


def test_the_mark_is_no_setting() -> None:
    assert MARK.removeprefix("GADFLY_").casefold() not in Settings.model_fields
