"""What a command says when the packages of an extra are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing())
from service.cli import app
app(sys.argv[2:])
"""
"""The program as if one module were not installed."""

DATABASE = "data.mdb"
"""By which a folder is known for an LMDB."""


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        (["train", "digits", "--D", "2"], "torch", "worker"),
        (["judge"], "torch", "worker"),
        (["evaluate", "model.safetensors"], "sklearn", "train"),
        (["study", "D", "model.safetensors"], "matplotlib", "train"),
        (["dataset", ".", "images.zip"], "lmdb", "train"),
        (["worker"], "torch", "worker"),
        (["worker"], "obstore", "s3"),
        (["api"], "obstore", "s3"),
        (["api"], "opentelemetry", "otel"),
        (["worker"], "opentelemetry", "otel"),
    ],
)
def test_a_missing_package_is_named(command: list[str], module: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / DATABASE).touch()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, module, *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "REDIS_URL": "redis://unused",
            "PFGMPP_RESULTS_URL": "s3://bucket",
            "OTEL_TRACES_EXPORTER": "otlp",
            "PYTHONPATH": ":".join(sys.path),
            "HOME": str(tmp_path),
        },
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"pfgmpp: {command[0]} needs {module}: pip install -c constraints.txt '.[{extra}]'"
    ]
