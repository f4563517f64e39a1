"""What the README says of settings and routes is what there is."""

from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from service.api import create_app
from service.settings import Settings

README = (Path(__file__).parent.parent / "README.md").read_text()


def settings_table() -> str:
    """The table of all settings, as the README holds it."""
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = "REDIS_URL" if name == "redis_url" else f"PFGMPP_{name.upper()}"
        value = field.get_default(call_default_factory=True, validated_data={})
        assert value is not PydanticUndefined
        default = "" if value is None else f"`{value}`"
        lines.append(f"| `{variable}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_every_setting_is_in_the_readme() -> None:
    assert settings_table() in README


@pytest.mark.parametrize("path", ["/v1/samples", "/v1/jobs/{id}", "/v1/models", "/livez", "/readyz", "/metrics"])
def test_the_routes_of_the_readme_exist(path: str) -> None:
    assert path in README
    routes = {
        path.replace("{job_id}", "{id}") for path in create_app(Settings(redis_url="redis://unused")).openapi()["paths"]
    }
    assert path in routes
