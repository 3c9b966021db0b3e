# Two commands do everything on a machine with Python 3.11: make demo, make test.
# make bench wants a machine that does nothing else; BENCH=--quick only sees that it works.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test slow check federation bench agreement clean

demo: $(READY)
	$(BIN)/fedgaze demo --output runs/demo

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow' --cov --cov-report=
	$(BIN)/coverage report --include='src/fedgaze/xai/*' --fail-under=95

# Servers, clients and power cuts, real disks that fill up: some twenty minutes.
slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 20 -m slow

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

federation: $(READY)
	$(BIN)/python -m pytest tests/federate/deployment/test_federation.py -s

bench: $(READY)
	$(BIN)/python benchmarks/run_all.py --write docs/benchmarks.md $(BENCH)

agreement: $(READY)
	$(BIN)/python benchmarks/agreement.py --write docs/methods.md

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv
