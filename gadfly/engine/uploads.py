"""Adapters sent to an engine that cannot read the deployment's folders, because it runs on another host.

`PUT /v1/gadfly/adapters/{file}?name=NAME` stores one file of an adapter in a temporary folder of the engine and answers
with that folder, from which `/v1/load_lora_adapter` then loads the adapter. The paths are below /v1, where vLLM asks
for its key. With several hosts for one engine, all of them need the folder: set TMPDIR to a shared one.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
from base64 import b64decode
from binascii import Error as NotBase64
from contextlib import suppress
from pathlib import Path

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gadfly.adapters import CONFIG, WEIGHTS

PATH = "/v1/gadfly/adapters"
DIGEST = "content-digest"  # RFC 9530: sha-256=:base64:

_FILES = (WEIGHTS, CONFIG)
_PREFIX = "gadfly-adapters-"
_FREE_BYTES = 2**30  # are left on the disk
_UNUSED_S = 600.0  # an adapter is loaded within seconds of its upload

logger = logging.getLogger("vllm.gadfly")


class Uploads:
    """ASGI middleware for `--middleware gadfly.engine.uploads.Uploads`: adds the route at the first request to it.

    The route belongs to the application, behind vLLM's own middleware, which compares the key.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._received: Received | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by the server for each request."""
        if self._received is None and scope["type"] == "http" and scope["path"].startswith(PATH):
            self._received = Received()
            scope["app"].add_route(f"{PATH}/{{file}}", self._received.put, methods=["PUT"])
        await self._app(scope, receive, send)


class Received:
    """The adapters that were sent to this engine. They are deleted when it ends, and when it no longer serves them."""

    def __init__(self) -> None:
        _forget_ended()
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = os.open(self._folder, os.O_RDONLY)  # held by this process until it ends, even if it is killed
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        weakref.finalize(self, _end, self._folder, self._lock)

    async def put(self, request: Request) -> Response:
        """Store one file. 400: another file or hash, or no name; 411: no length; 507: too little space on the disk."""
        file, name = request.path_params["file"], request.query_params.get("name", "")
        if file not in _FILES:
            return _problem(400, f"{file} is no file of an adapter: the files are {' and '.join(_FILES)}")
        if not name:
            return _problem(400, "the adapter needs a name: ?name=NAME")
        if (digest := _sha256(request.headers.get(DIGEST, ""))) is None:
            return _problem(400, f"the header {DIGEST} must hold the SHA-256 of the file (RFC 9530)")
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return _problem(411, "the request must state the length of the file")
        served = frozenset(map(_folder_name, request.app.state.openai_serving_models.lora_requests))
        await anyio.to_thread.run_sync(self._forget_unused, served)
        if shutil.disk_usage(self._folder).free < int(length) + _FREE_BYTES:
            return _problem(507, f"the disk of {self._folder} has too little space for {length} bytes")
        folder = self._folder / _folder_name(name)
        try:
            is_intact = await _store(request, folder / file, digest)
        except ClientDisconnect:
            return _problem(400, "the connection was closed before the file was complete")
        except OSError as error:
            return _problem(507, f"{file} cannot be written: {error.strerror}")
        if not is_intact:
            return _problem(400, f"{file} arrived with another hash than the header {DIGEST} states")
        return JSONResponse({"folder": str(folder)})

    def _forget_unused(self, served: frozenset[str]) -> None:
        """Delete the adapters that the engine does not serve, except those that arrived in the last minutes."""
        for folder in self._folder.iterdir():
            if folder.name not in served and time.time() - folder.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)
                logger.info("Deleted %s, because its adapter is not loaded.", folder)


def _folder_name(name: str) -> str:
    """The name of an adapter's folder: its own may have slashes."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32]


def _forget_ended() -> None:
    """Delete the folders of engines that were killed. Nothing else is left to delete them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another engine deletes it, or it is another user's
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its engine runs
                shutil.rmtree(folder)
                logger.info("Deleted %s, because its engine has ended.", folder)
            finally:
                os.close(descriptor)


def _end(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


async def _store(request: Request, path: Path, sha256: bytes) -> bool:
    """Write the body to a file, which appears when it is complete. False, and no file, if the hash differs."""
    await anyio.Path(path.parent).mkdir(exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    digest = hashlib.sha256()
    try:
        async with anyio.wrap_file(os.fdopen(descriptor, "wb")) as target:
            async for chunk in request.stream():
                digest.update(chunk)
                await target.write(chunk)
        if is_intact := digest.digest() == sha256:
            await anyio.Path(unfinished).replace(path)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.Path(unfinished).unlink(missing_ok=True)
    return is_intact


def _sha256(header: str) -> bytes | None:
    found = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]+):", header.strip())
    try:
        return None if found is None else b64decode(found[1], validate=True)
    except NotBase64:
        return None


def _problem(status: int, message: str) -> Response:
    """An error in vLLM's form."""
    return JSONResponse({"error": {"message": message, "code": status}}, status_code=status)
