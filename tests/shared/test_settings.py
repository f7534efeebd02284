"""Settings refuse to be half right."""

import pytest

from gadfly.errors import BadSettings
from gadfly.settings import Settings, is_loopback, without_password

TYPOS = [  # variable, the suggestion of the refusal
    ("GADFLY_ENGINE_URL", "did you mean GADFLY_ENGINE_URLS?"),
    ("GADFLY_PROT", "did you mean GADFLY_PORT?"),
    ("gadfly_prot", "did you mean GADFLY_PORT?"),
    ("GADFLY_NOTHING_LIKE_IT", "`gadfly settings` lists them"),
]


@pytest.mark.parametrize(("variable", "hint"), TYPOS)
def test_a_variable_that_is_no_setting_is_refused(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(BadSettings) as refusal:
        Settings.load()
    assert variable in str(refusal.value)
    assert hint in str(refusal.value)


@pytest.mark.parametrize("variable", ["GADFLY_EXTRA", "GADFLY_RUN_MARK", "GADFLYING", "gadfly_port"])
def test_other_variables_are_not_its_business(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "9000")
    Settings.load()


BAD = [  # settings, words of the refusal
    ({"port": "70000"}, "GADFLY_PORT"),
    ({"database_url": "mysql://db/x"}, "GADFLY_DATABASE_URL"),
    ({"engine_urls": "localhost:8000"}, "GADFLY_ENGINE_URLS"),
    ({"engine_urls": "dns+http://:8000"}, "no name to look up"),
    ({"engine_urls": "dns+https://engines:8000"}, "GADFLY_ENGINE_URLS"),
    ({"engine_args": "--name 'open"}, "GADFLY_ENGINE_ARGS: No closing quotation"),
    ({"max_tokens": "4096"}, "^max_tokens must be smaller"),
    ({"model_revision": "main"}, "GADFLY_MODEL_REVISION: 'main' is neither a commit .* a branch or a tag can move"),
    (
        {"prompts": "stepwise@99"},
        "GADFLY_PROMPTS: there is no prompt set 'stepwise@99'; the prompt sets are bare@1, critique-rl@1, ",
    ),
]


@pytest.mark.parametrize(("given", "named"), BAD)
def test_a_bad_value_is_named(given: dict[str, str], named: str) -> None:
    with pytest.raises(BadSettings, match=named):
        Settings.load(given)


HOSTS = [
    ("localhost", True),
    ("127.0.0.1", True),
    ("127.8.8.8", True),
    ("::1", True),
    ("0.0.0.0", False),
    ("db", False),
]


@pytest.mark.parametrize(("host", "stays"), HOSTS)
def test_loopback(host: str, stays: bool) -> None:
    assert is_loopback(host) is stays


PASSWORDS = [  # URL, as shown, why this row exists
    ("postgresql://me:secret@db/gadfly", "postgresql://me:********@db/gadfly", "the usual place"),
    ("postgresql://me@db/gadfly", "postgresql://me@db/gadfly", "a user without password"),
    ("postgresql://db/gadfly", "postgresql://db/gadfly", "no user"),
    ("postgresql://me:a@b:c@db:5432/x", "postgresql://me:********@db:5432/x", "a password with @ and :"),
    ("postgresql:///x?user=me&password=secret", "postgresql:///x?user=me&password=********", "among the parameters"),
    ("postgresql:///x?sslpassword=s&host=/run/p", "postgresql:///x?sslpassword=********&host=/run/p", "the key's own"),
    ("http://me:secret@engine:8000", "http://me:********@engine:8000", "not only databases"),
    ("not a url: at all", "not a url: at all", "nothing to hide"),
]


@pytest.mark.parametrize(("url", "expected", "why"), PASSWORDS)
def test_passwords_are_not_shown(url: str, expected: str, why: str) -> None:
    assert without_password(url) == expected, why
