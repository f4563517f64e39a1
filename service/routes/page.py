"""The web page: a closed list of static files, read once at start, and open to everyone."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import Request, Response

from service.problems import http_problem
from service.routes import new_router
from service.wire import has_current

FOLDER = Path(__file__).parent.parent / "page"

INDEX = "index.html"

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Of everything that the page is made of; other files are not served."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page runs its own scripts alone, and speaks to nobody but this service."""

router = new_router(is_open=True)


@dataclass(frozen=True)
class StaticFile:
    """A file as it is answered."""

    content: bytes
    media_type: str
    tag: str


def read_files() -> dict[str, StaticFile]:
    """The files of the page by name."""
    files = {}
    for path in FOLDER.iterdir():
        if media_type := MEDIA_TYPES.get(path.suffix):
            content = path.read_bytes()
            files[path.name] = StaticFile(content, media_type, f'"{sha256(content).hexdigest()[:32]}"')
    return files


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page."""
    return _answer(request, INDEX)


@router.get("/page/{name}", include_in_schema=False)
async def file(name: str, request: Request) -> Response:
    """What the page is made of."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    """A file, or 304 to who has it: it is asked about every time, so that a new version shows at once."""
    files: dict[str, StaticFile] = request.app.state.page
    found = files.get(name)
    if found is None:
        raise http_problem(404)
    headers = {"ETag": found.tag, "Cache-Control": "no-cache", "Content-Security-Policy": POLICY}
    if has_current(request, found.tag):
        return Response(status_code=304, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)
