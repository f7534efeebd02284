"""Signatures by the published example, secrets, and the addresses that an endpoint may have."""

import base64

import pytest

from gadfly.errors import BadInput
from gadfly.service.webhooks import checked_url
from gadfly.webhooks import new_secret, signed_headers


def test_a_signature_is_that_of_the_published_example() -> None:
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_secrets_differ_and_have_32_bytes() -> None:
    secrets = {new_secret() for _ in range(20)}
    assert len(secrets) == 20
    assert {len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) for secret in secrets} == {32}


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hooks?token=a%20b",
        "http://example.com",
        "http://10.0.0.7:8080/",  # internal: the operator's network decides
        "https://[2001:db8::1]/hook",
        "https://xn--strae-oqa.de/hook",
    ],
)
def test_addresses_that_are_taken(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("example.com/hook", "must begin with http"),
        ("https:///hook", "name a host"),
        ("https://example.com:99999/", "cannot be read"),
        ("https://example.com:0/", "must begin with http"),
        ("https://[::1/", "cannot be read"),
        ("https://xn--a/", "cannot be read"),
        ("https://xn--ls8h.la/", "cannot be read"),
        ("https://user:word@example.com/", "user name or a password"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com/a b", "visible ASCII"),
        ("https://exämple.com/", "visible ASCII"),
        ("https://example.com/\r\nx-other: 1", "visible ASCII"),
        ("https://example.com/" + "a" * 2000, "at most 2000"),
    ],
)
def test_addresses_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        checked_url(url)
    assert caught.value.field == "url"
