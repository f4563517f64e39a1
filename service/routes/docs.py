"""The pages that show the OpenAPI document, with all they are made of: they load nothing from elsewhere."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from fastapi import Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

from service.problems import http_problem
from service.routes import new_router

FOLDER = Path(str(files("fastapi_offline"))) / "static"
"""Of that package only Swagger UI is used, of which it is the best kept bundle: FastAPI takes it from the internet."""

SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"

INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

router = new_router(is_open=True)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The document, to read and to try out."""
    title = request.app.title
    page = get_swagger_ui_html(
        openapi_url=request.app.openapi_url,
        title=title,
        swagger_js_url=f"/docs/{SCRIPT}",
        swagger_css_url=f"/docs/{STYLE}",
        swagger_favicon_url=f"/docs/{ICON}",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},  # schemas are shown where they are used
    )
    page.headers["Content-Security-Policy"] = _policy(bytes(page.body).decode())
    return page


@router.get("/docs/{name}", include_in_schema=False)
async def docs_file(name: str) -> Response:
    """What the page is made of."""
    if name not in {SCRIPT, STYLE, ICON}:
        raise http_problem(404)
    return FileResponse(FOLDER / name, headers={"Cache-Control": "max-age=3600"})


def _policy(html: str) -> str:
    """What the page may load: its own files, and the script that is in it."""
    hashes = " ".join(
        f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in INLINE_SCRIPT.findall(html)
    )
    return (
        f"default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
