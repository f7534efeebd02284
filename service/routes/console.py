"""/console: the files of the browser's console, which are built into the package. Not part of the API."""

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_HASHED = "assets/"  # their names change with their content
_NOT_BUILT = "The console is not built: run `make console` in the checkout, or install a release.\n"


def console_routes(folder: Path) -> APIRouter:
    """The routes that serve the console built in a folder."""
    router = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=folder, check_dir=False)

    @router.get("/console")
    async def console() -> Response:
        return RedirectResponse("console/")  # relative, for proxies that serve the API under a path

    @router.get("/console/{path:path}")
    async def console_file(path: str, request: Request) -> Response:
        if not (folder / "index.html").is_file():
            return PlainTextResponse(_NOT_BUILT, status_code=404)
        response = await files.get_response(path or "index.html", request.scope)
        is_fixed = path.startswith(_HASHED)
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if is_fixed else "no-cache"
        response.headers.update(_HEADERS)
        return response

    return router
