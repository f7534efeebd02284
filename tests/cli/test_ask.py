"""Input and output of `gadfly critique`, `refine` and `feedback`, over simulated answers."""

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gadfly.cli.answer_view import show_critique, show_refinement, stream_answer
from gadfly.cli.request_input import read_text, request_body
from gadfly.client import Client, ServiceError
from gadfly.errors import BadInput
from gadfly.settings import Settings

CRITIQUE: dict[str, Any] = {
    "id": "01-critique",
    "episode_id": "01-episode",
    "verdict": "incorrect",
    "confidence": 0.873,
    "calibrated_confidence": 0.714,
    "critic": {"version": 7, "adapter_sha256": "ab" * 32},
    "steps": [
        {"text": "3 + 4 = 7", "verdict": "incorrect", "explanation": "It should be [3 * 4]."},
        {"text": "7 - 2 = 5", "verdict": "correct", "explanation": ""},
    ],
    "critiques": [{"verdict": "incorrect"}, {"verdict": "correct"}, {"verdict": "incorrect"}],
    "grade": "wrong",
    "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    "latency_ms": 1234.5,
}
REFINEMENT: dict[str, Any] = {
    **CRITIQUE,
    "id": "01-refine",
    "refined_response": "3 * 4 - 2 = 10",
    "rounds": [{"critique": {"confidence": None, "calibrated_confidence": None}}],
    "samples": [1, 2, 3],
    "votes": 2,
    "stop_reason": "judged_correct",
    "refined_grade": "right",
}


def client(handler: Any, **settings: Any) -> Client:
    return Client.from_settings(Settings(**settings), transport=httpx.MockTransport(handler))


def events(*pairs: tuple[str, dict[str, Any]]) -> bytes:
    return b": heartbeat\n\n" + b"".join(
        f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode() for name, data in pairs
    )


STREAM = {"content-type": "text/event-stream; charset=utf-8"}


def problem(status: int, title: str, detail: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"title": title, "status": status, "detail": detail}, headers=headers)


def test_text_is_printed_as_it_arrives_and_the_result_returned(capsys: pytest.CaptureFixture[str]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"question": "q", "response": "r", "stream": True}
        assert request.headers["authorization"] == "Bearer gf_key"
        return httpx.Response(
            200,
            headers=STREAM,
            content=events(
                ("text", {"sample": 0, "round": 0, "role": "critique", "text": "Line\u2028s, \u2029 and \x85. "}),
                ("text", {"sample": 0, "round": 0, "role": "critique", "text": "Step 1 "}),
                ("text", {"sample": 1, "round": 0, "role": "critique", "text": "of another sample"}),
                ("text", {"sample": 0, "round": 0, "role": "critique", "text": "is [red]wrong[/red]\x1b[2J"}),
                ("result", CRITIQUE),
            ),
        )

    assert stream_answer(client(handler, key="gf_key"), "/critique", {"question": "q", "response": "r"}) == CRITIQUE
    printed = capsys.readouterr().out
    assert "Step 1 is [red]wrong[/red]" in printed, "the model's text is not markup"
    assert "\x1b" not in printed, "nor does it control the terminal"
    assert "another sample" not in printed


def test_a_critique_shows_steps_verdict_confidence_critic_and_ids(capsys: pytest.CaptureFixture[str]) -> None:
    show_critique(CRITIQUE)
    printed = capsys.readouterr().out
    for part in (
        "3 + 4 = 7",
        "[3 * 4]",
        "✗",
        "✓",
        "incorrect",
        "87%, calibrated 71%",
        "critic@7",
        "abababababab",
        "01-critique",
    ):
        assert part in printed
    assert "votes       1 correct, 2 incorrect" in printed
    assert "response    wrong" in printed
    assert "gadfly feedback 01-critique" in printed


def test_a_critique_of_the_base_model_without_steps(capsys: pytest.CaptureFixture[str]) -> None:
    critic = {"version": 0, "adapter_sha256": None}
    unsure = {"verdict": "unparsed", "confidence": None, "calibrated_confidence": None}
    show_critique({**CRITIQUE, **unsure, "steps": [], "critic": critic, "grade": None})
    printed = capsys.readouterr().out
    assert "critic@0 (the base model, untrained)" in printed
    assert "confidence" not in printed
    assert "no recognisable steps" in printed


def test_a_refinement_shows_the_answer_and_its_stop_reason(capsys: pytest.CaptureFixture[str]) -> None:
    show_refinement(REFINEMENT)
    printed = capsys.readouterr().out
    assert "3 * 4 - 2 = 10" in printed
    assert "stopped     after 1 round: the critic judges the answer correct; 2 of 3 samples agree" in printed
    assert "refined     right" in printed


def test_a_refusal_of_a_stream_is_one_sentence() -> None:
    answer = problem(429, "Too many requests", "256 requests are in flight", **{"retry-after": "1"})
    with pytest.raises(ServiceError, match=r"Too many requests: 256 requests are in flight \(try again in 1 s\)"):
        stream_answer(client(lambda request: answer), "/critique", {})


def test_an_error_in_the_stream_is_one_sentence() -> None:
    content = events(("error", {"title": "Engine timed out", "status": 504, "detail": "it took longer than 300 s"}))
    with pytest.raises(ServiceError, match="it took longer than 300 s"):
        stream_answer(client(lambda request: httpx.Response(200, content=content, headers=STREAM)), "/critique", {})


def test_a_stream_without_a_result_is_an_error() -> None:
    content = events(("text", {"sample": 0, "round": 0, "role": "critique", "text": "Step"}))
    with pytest.raises(ServiceError, match="ended without a result"):
        stream_answer(client(lambda request: httpx.Response(200, content=content, headers=STREAM)), "/critique", {})


def test_texts_are_read_from_arguments_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.txt").write_text("from a file")
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert read_text("as given") == "as given"
    assert read_text(f"@{tmp_path / 'q.txt'}") == "from a file"
    assert read_text("-") == "from a pipe"
    assert read_text(None) is None
    with pytest.raises(BadInput, match="No such file"):
        read_text(f"@{tmp_path / 'none'}")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_text(f"@{tmp_path / 'binary'}")


def test_a_request_is_read_from_standard_input_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"question": "q", "response": "r", "seed": 1}'))
    assert request_body(None, None, {"seed": 2, "n": None}) == {"question": "q", "response": "r", "seed": 2}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("[]", "one JSON object"),
        ("", "--question and --response"),
        ('{"question": "q"}', "--response"),
    ],
)
def test_an_incomplete_request_is_refused_before_it_is_sent(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    with pytest.raises(BadInput, match=sentence):
        request_body(None, None, {})
