"""Output and requests of `gadfly critics`, `promote` and `rollback`, over simulated answers."""

import json
from typing import Any

import httpx
import pytest

from gadfly.cli.commands.critics import request_promotion, request_rollback
from gadfly.cli.critic_view import show_canaries, show_critic, show_critics, show_swap
from gadfly.client import Client, ServiceError, calls
from gadfly.settings import Settings

ZERO: dict[str, Any] = {
    "version": 0,
    "parent": None,
    "base_model": "tiny",
    "adapter_sha256": None,
    "status": "untrained",
    "created_at": "2026-01-02T03:04:05Z",
    "verdict_only": False,
    "archived": False,
    "pointers": ["previous"],
    "task": "math",
}
SEVEN = ZERO | {"version": 7, "parent": 0, "adapter_sha256": "ab" * 32, "status": "trained", "pointers": ["live"]}
SWAP: dict[str, Any] = {
    "id": "01-swap",
    "version": 7,
    "from_version": 0,
    "kind": "promote",
    "status": "done",
    "requested_at": "2026-01-02T03:04:05Z",
    "finished_at": "2026-01-02T03:04:06Z",
    "reason": None,
}
RATE = {"value": 0.9, "of": 30, "low": 0.74, "high": 0.97}
BOARD: dict[str, Any] = {
    "answers": 60,
    "right": RATE,
    "wrong": RATE | {"value": 0.1, "low": 0.03, "high": 0.26},
    "balanced": RATE | {"value": 0.5, "low": 0.42, "high": 0.58},
    "auroc": RATE | {"value": 0.561},
    "ece": RATE | {"value": 0.41, "low": 0.3, "high": 0.52},
    "calibrated_ece": None,
    "threshold": {"p_correct": 0.9312, "balanced": RATE | {"value": 0.61}},
}
HISTORY = SEVEN | {
    "run_id": "01-run",
    "prompt_set": "stepwise@1",
    "task_version": None,
    "outcome": "not_enough_evidence",
    "gate": {},
    "calibration": {
        "questions": 160,
        "class_shares": {"share": 0.95},
        "before": {"ece": 0.21, "low": 0.15, "high": 0.27},
        "after": {"ece": 0.031, "low": 0.0, "high": 0.066},
    },
    "scoreboard": BOARD,
    "origin": None,
    "swaps": [SWAP, SWAP | {"status": "refused", "reason": "its hash [red]differs\x1b[2J"}],
    "receipts": [
        {
            "details": {
                "from_version": 0,
                "engines": [{"deltas": {"from_trainer": 3.2e-05}}, {"deltas": {"from_trainer": 1e-06}}],
                "in_flight": 4,
                "lost": 0,
            }
        }
    ],
}


def client(handler: Any) -> Client:
    return Client.from_settings(Settings(), transport=httpx.MockTransport(handler))


def test_lists_critics_with_their_pointers(capsys: pytest.CaptureFixture[str]) -> None:
    show_critics([SEVEN, ZERO])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["7", "math", "live", "trained", "0", "2026-01-02", "03:04", "abababababab"]
    assert lines[2].split() == ["0", "math", "previous", "untrained", "2026-01-02", "03:04", "the", "base", "model"]


def test_shows_how_a_critic_went_live(capsys: pytest.CaptureFixture[str]) -> None:
    show_critic(HISTORY)
    shown = capsys.readouterr().out
    assert "version 0, trained by run 01-run, gate: not enough evidence" in shown
    assert "after 0 (promote): done" in shown
    assert "error (ECE) 0.210 (0.150 to 0.270) before, 0.031 (0.000 to 0.066) after, on 160 held-out questions" in shown
    assert "refused: its hash [red]differs" in shown, "a reason is not markup"
    assert "7 (live), trained" in shown
    words = " ".join(shown.split())
    assert (
        "on 60 labelled answers: right answers called correct 90% (74% to 97%), wrong answers called incorrect 10% (3% "
        "to 26%), AUROC 0.56 (0.74 to 0.97), error of the confidence (ECE) 0.41 (0.30 to 0.52)" in words
    )
    assert (
        "`correct` only from a probability of 0.931 on, balanced accuracy would be 61% (74% to 97%), not 50% (42%"
        in words
    )
    assert "\x1b" not in shown
    assert "proven on 2 engines, at most 3.2e-05 nats from the trainer; 4 requests in flight on 0, 0 lost" in shown


def test_promotes_and_rolls_back(capsys: pytest.CaptureFixture[str]) -> None:
    requests: list[tuple[str, Any]] = []
    listed: list[dict[str, Any]] = [
        {"version": 7, "pointers": ["live"], "task": "math"},
        {"version": 0, "pointers": [], "task": "math"},
    ]

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/state":
            return httpx.Response(200, json={"task": "math"})
        if request.method == "GET":
            return httpx.Response(200, json=listed)
        requests.append((request.url.path, json.loads(request.content)))
        return httpx.Response(
            202 if len(requests) == 2 else 200, json=SWAP | ({"status": "pending"} if len(requests) == 2 else {})
        )

    show_swap(request_promotion(client(answer), 7, "better"))
    show_swap(request_rollback(client(answer), None))
    listed.insert(0, {"version": 8, "pointers": ["live"], "task": "sql"})
    request_rollback(client(answer), None)
    request_rollback(client(answer), None, task="sql")
    assert requests == [
        ("/admin/promote", {"version": 7, "reason": "better"}),
        ("/admin/rollback", {"from_version": 7}),
        ("/admin/rollback", {"from_version": 7, "task": "math"}),
        ("/admin/rollback", {"from_version": 8, "task": "sql"}),
    ]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "version 7 is live; the previous version is 0"
    assert "still being proven" in second


def test_a_refusal_is_one_sentence() -> None:
    refusal = {"title": "Conflict", "status": 409, "detail": "version 7 is not made live: its hash differs"}
    with pytest.raises(ServiceError, match="its hash differs"):
        request_promotion(client(lambda request: httpx.Response(409, json=refusal)), 7, None)


def test_a_critic_without_labelled_answers_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_critic(ZERO | {name: None for name in HISTORY if name not in ZERO} | {"swaps": [], "receipts": []})
    shown = capsys.readouterr().out
    assert "0 (previous), untrained" in shown
    assert "none of its answers has a label yet: `gadfly feedback` gives one" in shown
    one = BOARD | {"answers": 1, "wrong": None, "auroc": None, "ece": None, "threshold": None}
    show_critic(HISTORY | {"scoreboard": one})
    words = " ".join(capsys.readouterr().out.split())
    assert "on 1 labelled answer: right answers called correct 90% (74% to 97%) " in words


CANARY: dict[str, Any] = {
    "task": "math",
    "swap_id": "019ad3a1-7c40-7000-8000-000000000000",
    "version": 7,
    "from_version": 3,
    "share": 0.1,
    "for_s": 3600,
    "for_requests": 500,
    "started_at": "2026-01-02T03:04:06.5Z",
    "ended_at": None,
    "outcome": None,
    "reason": None,
    "answers": 12,
    "answers_before": 108,
    "held": None,
}


def test_shows_canaries(capsys: pytest.CaptureFixture[str]) -> None:
    show_canaries([])
    ended = CANARY | {"ended_at": "2026-01-02T04:04:06Z", "outcome": "rolled_back", "reason": "labels show\x1b a loss"}
    show_canaries([CANARY | {"held": "only one key"}, ended, CANARY | {"for_requests": None}])
    shown = " ".join(capsys.readouterr().out.split())
    assert "no canaries" in shown
    assert (
        "math: version 7 answers 10% of the requests (12 answers; version 3: 108) since 2026-01-02 03:04:06 UTC, for "
        "3600 s or 500 answers waits for a person: only one key" in shown
    )
    assert "version 7 rolled back; answered 10% of the requests (12 answers; version 3: 108): labels show" in shown
    assert shown.endswith("for 3600 s")
    assert "\x1b" not in shown


def test_a_promotion_begins_as_a_canary_and_ends_as_one() -> None:
    requests: list[tuple[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, json=SWAP if request.url.path == "/admin/promote" else CANARY)

    given = client(answer)
    given.document(calls.promote(7, canary_share=0.1, canary_s=60))
    given.document(calls.promote(7, canary_share=0))
    given.document(calls.promote(7, task="math", canary_requests=5))
    widened = given.send(calls.widen_canary(version=7, reason="no complaints"))
    assert widened.answers_before == 108
    assert requests == [
        ("/admin/promote", {"version": 7, "canary": {"share": 0.1, "for_s": 60}}),
        ("/admin/promote", {"version": 7, "canary": {"share": 0}}),
        ("/admin/promote", {"version": 7, "task": "math", "canary": {"for_requests": 5}}),
        ("/admin/canaries/widen", {"version": 7, "reason": "no complaints"}),
    ]
