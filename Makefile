# Sets everything up in .venv; needs Python 3.11 or newer with venv (python3-venv of Debian and Ubuntu), and nothing else.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# HOST and PORT from the command line only: shells export HOST for their own ends.
SERVE_OPTIONS := $(if $(filter command,$(firstword $(origin HOST))),--host $(HOST)) $(if $(filter command,$(firstword $(origin PORT))),--port $(PORT))

.PHONY: serve test check programs format bench clean

serve: .venv/serve.done
	@exec $(BIN)/pfgmpp serve $(SERVE_OPTIONS)

test: check programs
	$(BIN)/pytest --numprocesses 2 --dist worksteal

check: .venv/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Chromium and Prometheus, which the page and the metrics are tested with; PyPI has neither.
programs:
	@command -v chromium >/dev/null && command -v promtool >/dev/null && exit; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo 'Installing chromium and prometheus, which some tests drive.'; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium prometheus >/dev/null; \
	else echo 'chromium or prometheus is not installed: tests that need them are skipped (apt-get install chromium prometheus).'; fi

format: .venv/test.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/test.done
	$(BIN)/pfgmpp bench --plot bench.png

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, not {sys.version.split()[0]}; set PYTHON=")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/serve.done: pyproject.toml constraints.txt | .venv/bin/python
	@echo 'Installing the service and its pinned packages into .venv: some minutes, once.'
	@$(PIP) --editable '.[worker,embedded,train]'
	@touch $@

.venv/test.done: .venv/serve.done
	@echo 'Installing what the tests need as well.'
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pfgmpp
