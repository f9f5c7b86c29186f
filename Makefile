# `make demo` and `make test` need Python >= 3.11 and nothing else: they make .venv themselves.

PYTHON ?= $(shell command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/digits

.PHONY: demo test test-slow lint clean

# Made again whenever the dependencies change.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/diffusion-jax train --config configs/digits.py --workdir $(DEMO)
	$(BIN)/diffusion-jax sample --workdir $(DEMO) --out $(DEMO)/samples --num 500 --cfg-scale 2 --overwrite
	$(BIN)/diffusion-jax evaluate --samples $(DEMO)/samples/samples.npz --reference digits --out $(DEMO)/result.json --overwrite
	cp $(DEMO)/samples/samples.png $(DEMO)/samples.png
	@echo "The picture: $(DEMO)/samples.png"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
