# make demo    an attention layer of a real model's size, and two videos from one prompt: dense and sparse
# make test    ruff, mypy, the documentation, pytest in as many processes as there are processors, at most four
# make docs    the documentation as a site, in build/site; a broken link fails
# Each creates .venv first if it is missing or older than pyproject.toml or constraints.txt.
# A Linux machine without a GPU saves gigabytes with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs clean

demo: .venv/.installed
	$(BIN)/python examples/demo.py --out demo

test: lint docs
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4

lint: .venv/.installed
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

# With --quiet, --strict would miss warnings.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# torch goes first, at its pin: everything after it then finds it there, whichever build the index has.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

# .venv stays: it takes minutes to build, and `rm -r .venv` is easy to type.
clean:
	rm -rf build demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
