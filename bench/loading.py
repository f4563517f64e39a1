"""What loading takes, each way in a process of its own.

python -m bench.loading mapped CHECKPOINT | plain WEIGHTS | nothing
"""

import sys
from pathlib import Path

from bench.bare import loaded
from bench.memory import peak_megabytes
from models.checkpoint import load

if __name__ == "__main__":
    how, *files = sys.argv[1:]
    kept = [load(Path(file)) if how == "mapped" else loaded(Path(file)) for file in files]
    print(peak_megabytes())  # noqa: T201
