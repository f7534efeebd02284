"""What each kind of key may do: a table over all routes, and the scopes over HTTP."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from gadfly.api_keys import issue_key
from gadfly.errors import BadInput, NotAllowed
from gadfly.records import Scope, Tier, new_id
from gadfly.service.app import create_app
from gadfly.service.dependencies import RouteNeeds
from gadfly.service.keyring import Caller
from gadfly.service.quotas import Quotas
from gadfly.settings import Settings
from gadfly.store.database import Database
from gadfly.store.interactions import insert_records
from tests.service.conftest import serving_without_engine
from tests.support.records import make_interaction

OPEN = "open"  # needs no key
ALL, OWN, NO = "all", "own", "403"

# What keys with the scopes use, label, read and train get: all rows, their own, or 403. Admins get all everywhere.
ROUTES = {
    "POST /critique": (OWN, NO, NO, NO),
    "POST /refine": (OWN, NO, NO, NO),
    "GET /v1/models": (OWN, NO, NO, NO),
    "GET /v1/models/{model}": (OWN, NO, NO, NO),
    "POST /v1/chat/completions": (OWN, NO, NO, NO),
    "POST /v1/completions": (OWN, NO, NO, NO),
    "POST /beta/litellm_basic_guardrail_api": (OWN, NO, NO, NO),
    "GET /session": (OWN, OWN, OWN, OWN),
    "POST /session": OPEN,
    "DELETE /session": OPEN,
    "POST /feedback": (OWN, ALL, NO, NO),
    "DELETE /feedback/{feedback_id}": (OWN, OWN, NO, NO),
    "POST /labels/queue": (OWN, ALL, NO, NO),
    "POST /labels/queue/release": (OWN, ALL, NO, NO),
    "POST /labels/queue/{interaction_id}/skip": (OWN, ALL, NO, NO),
    "GET /labels/progress": (OWN, OWN, OWN, NO),
    "GET /interactions": (OWN, NO, ALL, NO),
    "GET /interactions/{interaction_id}": (OWN, NO, ALL, NO),
    "DELETE /interactions/{interaction_id}": (OWN, NO, NO, NO),
    "POST /interactions/{interaction_id}/replay": (OWN, NO, NO, NO),
    "GET /admin/interactions/{interaction_id}/learning": (NO, NO, ALL, NO),
    "GET /tasks": (OWN, OWN, OWN, OWN),
    "GET /critics": (OWN, OWN, OWN, OWN),
    "GET /critics/{version}": (OWN, OWN, OWN, OWN),
    "GET /admin/overview": (NO, NO, ALL, NO),
    "GET /admin/overview/accuracy": (NO, NO, ALL, NO),
    "POST /admin/retrain": (NO, NO, NO, ALL),
    "GET /admin/runs": (NO, NO, ALL, ALL),
    "GET /admin/runs/compare": (NO, NO, ALL, ALL),
    "GET /admin/runs/{run_id}": (NO, NO, ALL, ALL),
    "GET /admin/runs/{run_id}/steps": (NO, NO, ALL, ALL),
    "GET /admin/runs/{run_id}/samples": (NO, NO, ALL, ALL),
    "GET /admin/runs/{run_id}/events": (NO, NO, ALL, ALL),
    "POST /admin/runs/{run_id}/cancel": (NO, NO, NO, ALL),
    "POST /admin/runs/{run_id}/reproduce": (NO, NO, NO, ALL),
    "GET /admin/labels/conflicts": (NO, NO, ALL, NO),
    "GET /admin/labels/{interaction_id}": (NO, NO, ALL, NO),
    "GET /admin/canaries": (NO, NO, ALL, NO),
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /state": OPEN,
    "GET /metrics": OPEN,
}
ADMIN_ONLY = (NO, NO, NO, NO)  # every route under keys that the table does not name


def needs_of(dependant: Dependant) -> Iterator[RouteNeeds]:
    for part in dependant.dependencies:
        if isinstance(part.call, RouteNeeds):
            yield part.call
        yield from needs_of(part)


def granted(needs: RouteNeeds, scopes: tuple[Scope, ...], tier: Tier = Tier.CALLER) -> str:
    try:
        admitted = needs.admit(Caller(key_id=new_id(), tier=tier, scopes=scopes), Quotas())
    except NotAllowed:
        return NO
    return ALL if admitted.rows_of is None else OWN


@pytest.mark.fast
def test_every_route_gives_each_kind_of_key_what_the_table_says() -> None:
    shown = {
        f"{method} {route.path}": list(needs_of(route.dependant))
        for route in create_app(Settings()).routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    assert set(ROUTES) <= set(shown)
    for name, needs in shown.items():
        expected = ROUTES.get(name, ADMIN_ONLY)
        if expected == OPEN:
            assert needs == [], name
            continue
        [need] = needs
        assert tuple(granted(need, (scope,)) for scope in Scope) == expected, name
        assert granted(need, tuple(Scope), Tier.ADMIN) == ALL, name
        # Several scopes give what each of them gives, and no more.
        two = {granted(need, (Scope.USE,)), granted(need, (Scope.READ,))}
        assert granted(need, (Scope.USE, Scope.READ)) == next(each for each in (ALL, OWN, NO) if each in two), name


@pytest.mark.fast
def test_a_refusal_names_the_scope() -> None:
    caller = Caller(key_id=new_id(), tier=Tier.CALLER, scopes=(Scope.LABEL,))
    for needs, words in [
        (RouteNeeds(every=frozenset({Scope.TRAIN})), "a key with the scope train, or an admin key"),
        (RouteNeeds(own=frozenset({Scope.USE}), every=frozenset({Scope.READ})), "one of the scopes use, read"),
        (RouteNeeds(), "requires an admin key"),
    ]:
        with pytest.raises(NotAllowed, match=words) as refused:
            needs.admit(caller, Quotas())
        assert refused.value.authenticated, "403, and not 401"


async def test_a_key_does_what_its_scopes_say(engineless: Settings, database: Database) -> None:
    secrets, ids = {}, {}
    async with database.session() as session:
        for name, tier, scopes in [
            ("root", Tier.ADMIN, None),
            ("ann", Tier.CALLER, None),
            ("labeller", Tier.CALLER, [Scope.LABEL]),
            ("reader", Tier.CALLER, [Scope.READ]),
            ("trainer", Tier.CALLER, [Scope.TRAIN]),
        ]:
            key, secrets[name] = await issue_key(session, name=name, tier=tier, scopes=scopes)
            ids[name] = key.id
    asked = make_interaction(key_id=ids["ann"])
    async with serving_without_engine(engineless) as client:
        async with database.session() as session:
            await insert_records(session, [asked], heldout_share=0.3)

        async def answer(name: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
            headers = {"authorization": f"Bearer {secrets[name]}"}
            found = await client.request(method, path, json=body, headers=headers)
            return found.status_code, found.json() if found.content else {}

        vote = {"interaction_id": str(asked.id), "correct": False}
        status, feedback = await answer("labeller", "POST", "/feedback", vote)
        assert status == 200, feedback
        status, queue = await answer("labeller", "POST", "/labels/queue", {"labeller": "lea"})
        assert status == 200, queue
        status, refused = await answer("labeller", "GET", f"/interactions/{asked.id}")
        assert status == 403
        assert "one of the scopes use, read" in str(refused["detail"])
        status, shown = await answer("reader", "GET", f"/interactions/{asked.id}")
        assert (status, shown["id"]) == (200, str(asked.id))
        assert (await answer("reader", "POST", "/feedback", vote))[0] == 403
        assert (await answer("reader", "DELETE", f"/feedback/{UUID(str(feedback['id']))}"))[0] == 403
        assert (await answer("reader", "GET", "/admin/overview"))[0] == 200
        assert (await answer("reader", "GET", "/admin/keys"))[0] == 403
        assert (await answer("trainer", "GET", "/admin/runs"))[0] == 200
        assert (await answer("trainer", "GET", f"/interactions/{asked.id}"))[0] == 403
        assert (await answer("trainer", "POST", "/admin/promote", {"version": 0}))[0] == 403
        assert (await answer("ann", "POST", "/admin/retrain", {}))[0] == 403
        assert (await answer("ann", "DELETE", f"/feedback/{feedback['id']}"))[0] == 404, "another key's"
        assert (await answer("labeller", "DELETE", f"/feedback/{feedback['id']}"))[0] == 200
        status, made = await answer("root", "POST", "/admin/keys", {"name": "x", "scopes": ["read", "label", "read"]})
        assert (status, made["tier"], made["scopes"]) == (201, "caller", ["label", "read"])
        status, session = await answer("reader", "GET", "/session")
        assert session["scopes"] == ["read"]
        listed = (await answer("root", "GET", "/admin/keys"))[1]
        assert isinstance(listed, list)
        assert [key["scopes"] for key in listed[:2]] == [["use", "label", "read", "train"], ["use"]]
        for body in ({"tier": "admin", "scopes": ["read"]}, {"scopes": []}, {"scopes": ["write"]}):
            assert (await answer("root", "POST", "/admin/keys", {"name": "x", **body}))[0] == 422, body


async def test_keys_that_see_every_task_are_not_limited_to_some(database: Database) -> None:
    async with database.session() as session:
        for scopes in ([Scope.READ], [Scope.USE, Scope.LABEL]):
            with pytest.raises(BadInput, match="cannot be limited to tasks"):
                await issue_key(session, name="a", tier=Tier.CALLER, tasks=("math",), scopes=scopes)
        key, _ = await issue_key(session, name="a", tier=Tier.CALLER, tasks=("math",), scopes=[Scope.USE])
    assert (key.tasks, key.granted) == (("math",), (Scope.USE,))
