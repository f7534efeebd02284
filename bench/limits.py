"""The processor time that the checks of scopes and limits take in a request, without engine and database.

python -m bench.limits
"""

from functools import partial

from bench.processor_time import microseconds
from gadfly.records import Key, Scope, Tier, new_id, now
from gadfly.service.answering.limits import engine_calls
from gadfly.service.dependencies import RouteNeeds
from gadfly.service.keyring import caller_with
from gadfly.service.quotas import Quotas
from gadfly.service.wire.answers import CritiqueRequest

_ROUNDS = 100_000
_microseconds = partial(microseconds, rounds=_ROUNDS)
_NEVER = 10**9


def _key(**limits: int) -> Key:
    return Key(
        id=new_id(),
        name="bench",
        tier=Tier.CALLER,
        hint="gf_bench",
        created_at=now(),
        expires_at=None,
        revoked_at=None,
        **limits,  # type: ignore[arg-type]  # the limits are the fields that are integers
    )


def main() -> None:
    needs, body = RouteNeeds(own=frozenset({Scope.USE})), CritiqueRequest(question="q", response="r")
    limited = _key(
        requests_per_minute=_NEVER,
        engine_calls_per_minute=_NEVER,
        tokens_per_day=_NEVER * 1000,
        max_in_flight=_NEVER,
    )
    for name, key in (("a key without limits", _key()), ("a key with all four limits", limited)):
        quotas = Quotas()

        def answer(key: Key = key, quotas: Quotas = quotas) -> None:
            caller = needs.admit(caller_with(key), quotas)
            with quotas.work(caller, calls=engine_calls(body)):
                pass
            quotas.spend(caller, 100)

        alone = _microseconds(partial(caller_with, key))
        print(f"{name}: {_microseconds(answer) - alone:.1f} us a /critique, besides {alone:.1f} us to know the caller")


if __name__ == "__main__":
    main()
