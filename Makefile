# `make demo` and `make test` set up what they need on first use; a second call installs nothing.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
SETUP := .venv/.ready

.PHONY: demo test test-all check format clean

demo: $(SETUP)
	@test -f runs/demo/shards/classes.txt || { rm -rf runs/demo/shards; \
	  $(BIN)/coreset-ray shards digits runs/demo/shards --per-shard 200; }
	@$(BIN)/coreset-ray run configs/demo.yaml

test: $(SETUP)
	@$(BIN)/python -m pytest -q

test-all: $(SETUP)
	@$(BIN)/python -m pytest -q -m ""

check: $(SETUP)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python -m pytest -q tests/test_layers.py

format: $(SETUP)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:
	rm -rf .venv runs

$(SETUP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" \
	  || { echo "Python 3.11 or newer is needed; name one with make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@
