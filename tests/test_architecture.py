"""Dependencies point one way, and the API process never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BRIDGE = "engine.py"
CONTRACT = "models.sampling"
"""What requests may choose, without torch: the one thing of the models that more than the bridge may know."""


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it, but for the contract."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != CONTRACT:
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda path: path.name)
def test_models_know_nothing_of_the_service_and_open_no_pickle(path: Path) -> None:
    assert not imports(path) & {"service", "fastapi", "redis", "uvicorn", "pickle", "dill", "joblib"}


@pytest.mark.parametrize("path", sorted((ROOT / "service").rglob("*.py")), ids=lambda path: path.name)
def test_one_module_is_the_bridge(path: Path) -> None:
    crosses = imports(path) & {"models", "torch", "safetensors"}
    assert bool(crosses) == (path.name == BRIDGE)


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "models").rglob("*.py"), *(ROOT / "service").rglob("*.py")]), ids=lambda path: path.name
)
def test_nothing_depends_on_benchmarks_or_tests(path: Path) -> None:
    assert not imports(path) & {"bench", "tests"}


@pytest.mark.parametrize("module", ["service.api", "service.cli", "service.supervisor", "service.client"])
def test_only_the_worker_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_worker_does_import_torch() -> None:
    code = "import sys, service.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
