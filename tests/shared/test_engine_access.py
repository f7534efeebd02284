"""Attached engines: their keys, their names of the base model, their certificates, their adapters."""

import datetime
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gadfly.access import Access
from gadfly.engine_client import ACTOR, Adapters, Engine, Sampling, Served
from gadfly.engine_pool import EnginePool
from gadfly.errors import AdapterRefused, BadSettings, EngineRefused
from gadfly.prompts import Message, Prompt
from gadfly.settings import Settings

PROMPT = Prompt((Message("user", "1 + 1?"),))
ONE = Sampling(max_tokens=5)
ANSWER = {
    "choices": [{"index": 0, "message": {"content": "2"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


class Server:
    """A vLLM with a name and a key of its own."""

    def __init__(self, *names: str, key: str = "", root: str = "org/model", lora_route: int = 400) -> None:
        self.names = list(names)
        self.key = key
        self.root = root
        self.lora_route = lora_route
        self.metrics = 'vllm:num_requests_running{engine="0"} 0\n# TYPE vllm:lora_requests_info gauge\n'
        self.paths: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.paths.append(path)
        if self.key and path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {self.key}":
            return httpx.Response(401, json={"error": "Unauthorized"})
        if path == "/v1/models":
            cards = [{"id": name, "root": self.root} for name in self.names]
            return httpx.Response(200, json={"data": [*cards, {"id": "critic@2", "root": "/a", "parent": "x"}]})
        if path == "/v1/load_lora_adapter":
            return httpx.Response(self.lora_route, json={"detail": "Not Found"})
        if path == "/metrics":
            return httpx.Response(200, text=self.metrics)
        body = orjson.loads(request.content)
        if body["model"] not in self.names:
            return httpx.Response(404, json={"error": {"message": "no such model", "param": "model"}})
        if body.get("stream"):
            choice = {"index": 0, "delta": {"content": "2"}, "finish_reason": "stop"}
            event = orjson.dumps({"choices": [choice], "usage": ANSWER["usage"]}).decode()
            return httpx.Response(200, text=f"data: {event}\n\n", headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=ANSWER)

    def engine(self, **access: Any) -> Engine:
        return Engine(
            "http://engine:8000", timeout_s=5, access=Access(**access), transport=httpx.MockTransport(self.answer)
        )


async def test_the_name_of_the_base_model_is_read_from_the_engine_once() -> None:
    server = Server("Qwen/Qwen2.5-7B-Instruct")
    engine = server.engine()
    assert [reply.text for reply in await engine.chat(PROMPT, model=ACTOR, sampling=ONE)] == ["2"]
    await engine.chat(PROMPT, model=ACTOR, sampling=ONE)
    assert server.paths.count("/v1/models") == 1
    assert server.paths.count("/v1/chat/completions") == 3, "only the first request was sent twice"
    assert await engine.models() == {ACTOR, "critic@2"}


async def test_the_name_is_read_before_a_stream_begins() -> None:
    pieces: list[str] = []

    async def on_text(sample: int, text: str) -> None:
        pieces.append(text)

    engine = Server("Qwen/Qwen2.5-7B-Instruct").engine()
    [reply] = await engine.chat(PROMPT, model=ACTOR, sampling=ONE, on_text=on_text)
    assert (reply.text, pieces) == ("2", ["2"])


async def test_an_engine_that_knows_our_name_is_not_asked() -> None:
    server = Server("base")
    await server.engine().chat(PROMPT, model=ACTOR, sampling=ONE)
    assert server.paths == ["/v1/chat/completions"]


async def test_an_engine_that_comes_back_under_another_name_is_asked_again() -> None:
    server = Server("one")
    engine = server.engine()
    await engine.chat(PROMPT, model=ACTOR, sampling=ONE)
    server.names = ["two"]
    await engine.chat(PROMPT, model=ACTOR, sampling=ONE)


NAMES = [  # names with the folder each is served from, the setting, the base or the words of the refusal, why
    ({"base": "/m"}, "", "base", "our own engines"),
    ({"base": "/m", "other": "/n"}, "", "base", "our name goes first"),
    ({"llama": "/m", "llama-latest": "/m"}, "", "llama", "two names of one model"),
    ({"llama": "/m", "qwen": "/n"}, "", "serves llama, qwen: set GADFLY_ENGINE_MODEL", "a gateway"),
    ({"llama": "/m", "qwen": "/n"}, "qwen", "qwen", "the setting decides"),
    ({"llama": "/m"}, "qwen", "serves llama, and not qwen (GADFLY_ENGINE_MODEL)", "a typo in the setting"),
    ({}, "", "serves no model: set GADFLY_ENGINE_MODEL", "nothing at all"),
]


@pytest.mark.parametrize(("names", "wanted", "expected", "why"), NAMES)
def test_names(names: dict[str, str], wanted: str, expected: str, why: str) -> None:
    cards = [{"id": name, "root": root} for name, root in names.items()]
    adapter = {"id": "critic@1", "root": "/a", "parent": "llama"}
    if " " not in expected:
        served = Served.of([*cards, adapter], wanted=wanted, url="http://e")
        assert (served.base, served.names) == (expected, {ACTOR, "critic@1"}), why
        return
    with pytest.raises(EngineRefused) as refusal:
        Served.of([*cards, adapter], wanted=wanted, url="http://me:secret@e")
    assert expected in str(refusal.value), why
    assert "secret" not in str(refusal.value)


async def test_a_key_is_sent_and_a_wrong_one_is_one_sentence() -> None:
    server = Server("base", key="right")
    await server.engine(key="right").chat(PROMPT, model=ACTOR, sampling=ONE)
    for key, words in (("wrong", "refuses the key in GADFLY_ENGINE_KEY"), ("", "needs a key: set GADFLY_ENGINE_KEY")):
        engine = server.engine(key=key)
        for call in (engine.chat(PROMPT, model=ACTOR, sampling=ONE), engine.models(), engine.adapters()):
            with pytest.raises(EngineRefused) as refusal:
                await call
            assert str(refusal.value) == f"the engine at http://engine:8000 {words}"
    assert "right" not in repr(Access(key="right"))


async def test_requests_go_to_engines_that_accept_the_key() -> None:
    closed, open_ = Server("base", key="right"), Server("base")
    pool = EnginePool([closed.engine(key="wrong"), open_.engine()])
    assert [reply.text for reply in await pool.chat(PROMPT, model=ACTOR, sampling=ONE)] == ["2"]
    with pytest.raises(EngineRefused, match="refuses the key"):
        await EnginePool([closed.engine(key="wrong")]).chat(PROMPT, model=ACTOR, sampling=ONE)


ADAPTERS = [  # status of an empty request to load one, metrics, what follows
    (400, None, Adapters.LOADED),
    (404, None, Adapters.NOT_AT_RUN_TIME),
    (400, "vllm:num_requests_running 0\n", Adapters.OFF),
    (400, "", Adapters.LOADED),  # without metrics, the first adapter shows it
]


@pytest.mark.parametrize(("status", "metrics", "expected"), ADAPTERS)
async def test_adapters_at_run_time(status: int, metrics: str | None, expected: Adapters) -> None:
    server = Server("base", lora_route=status)
    server.metrics = server.metrics if metrics is None else metrics
    engine = server.engine()
    assert engine.known_adapters is None
    assert await engine.adapters() is expected
    assert await engine.adapters() is expected
    assert server.paths.count("/v1/load_lora_adapter") == 1
    assert bool(expected.problem) is (expected is not Adapters.LOADED)


async def test_a_load_that_finds_no_route_says_so(tmp_path: Path) -> None:
    engine = Server("base", lora_route=404).engine()
    with pytest.raises(AdapterRefused, match="loads no adapters at run time"):
        await engine.load_adapter("critic@1", tmp_path)
    assert engine.known_adapters is Adapters.NOT_AT_RUN_TIME


KEYS = [  # keys, addresses, the key of each or None where refused
    ("", "http://a,http://b", ("", "")),
    ("k", "http://a,http://b", ("k", "k")),
    ("k,l", "http://a,http://b", ("k", "l")),
    (" k , ", "http://a,http://b", ("k", "")),
    ("k,l", "http://a", None),
    ("k,l,m", "http://a,http://b", None),
]


@pytest.mark.parametrize(("keys", "urls", "expected"), KEYS)
def test_a_key_for_each_address(keys: str, urls: str, expected: tuple[str, ...] | None) -> None:
    given = {"engine_key": keys, "engine_urls": urls}
    if expected is None:
        with pytest.raises(BadSettings, match="one key for all, or one for each address"):
            Settings.load(given)
        return
    settings = Settings.load(given)
    assert tuple(settings.engine_access(url).key for url in settings.engine_urls) == expected


# ------------------------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An https engine on 127.0.0.1, and the file of the authority that signed its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    authority, certificate, key = make_certificates(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(Server("base").answer))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}", authority
    server.shutdown()
    server.server_close()
    thread.join()


async def test_an_own_authority_is_trusted(tls: tuple[str, Path]) -> None:
    url, authority = tls
    engine = Engine(url, timeout_s=5, access=Access(ca_file=authority))
    assert await engine.models() == {ACTOR, "critic@2"}
    await engine.aclose()


async def test_an_unknown_authority_is_named_and_not_an_absent_engine(tls: tuple[str, Path]) -> None:
    engine = Engine(tls[0], timeout_s=5)
    with pytest.raises(EngineRefused, match=r"certificate of https://127.0.0.1:\d+ is not trusted .*GADFLY_CA_FILE"):
        await engine.models()
    await engine.aclose()


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(BadSettings, match="GADFLY_CA_FILE"):
            Engine("https://e", timeout_s=5, access=Access(ca_file=tmp_path / name))


def make_handler(answer: Callable[[httpx.Request], httpx.Response]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            response = answer(httpx.Request("GET", f"https://e{self.path}", headers=dict(self.headers)))
            self.send_response(response.status_code)
            self.send_header("content-length", str(len(response.content)))
            self.end_headers()
            self.wfile.write(response.content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and a certificate of 127.0.0.1 that it signed, with its key."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey) -> bytes:
        is_authority = name == issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = (folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    files[0].write_bytes(build("authority", "authority", authority_key, authority_key))
    files[1].write_bytes(build("engine", "authority", key, authority_key))
    files[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files
