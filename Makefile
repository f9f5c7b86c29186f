# `make demo` and `make test` need Python >= 3.11 and nothing else: they make .venv themselves.

PYTHON ?= $(shell command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/digits
LATENT := runs/shapes64

.PHONY: demo demo-latent test test-slow lint clean

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

# Trains the DiT or the UNet (resumes one that has begun), samples, scores.
define latent
$(BIN)/diffusion-jax train --config configs/shapes64_latent_$(1).py --workdir $(LATENT)/$(1) && \
$(BIN)/diffusion-jax sample --workdir $(LATENT)/$(1) --out $(LATENT)/$(1)/samples --num 400 --cfg-scale 2 --overwrite && \
$(BIN)/diffusion-jax evaluate --samples $(LATENT)/$(1)/samples/samples.npz --reference shapes \
	--out $(LATENT)/$(1)/result.json --overwrite && \
cp $(LATENT)/$(1)/samples/samples.png $(LATENT)/$(1)/samples.png
endef

# Models as small as these gain little from a second core, so the UNet and the DiT begin side by side with one thread each
# (XLA reads NPROC). When the UNet is done the DiT is told to stop, saves itself and resumes with both cores.
demo-latent: $(VENV)/.installed
	$(BIN)/diffusion-jax train --config configs/shapes64_autoencoder.py --workdir $(LATENT)/autoencoder
	$(BIN)/diffusion-jax encode --autoencoder kl-f4 --weights $(LATENT)/autoencoder --data shapes:images=6000 \
		--image-size 64 --out $(LATENT)/latents
	export NPROC=1; \
	$(BIN)/diffusion-jax train --config configs/shapes64_latent_dit.py --workdir $(LATENT)/dit & dit=$$!; \
	{ $(call latent,unet); }; status=$$?; kill $$dit 2> /dev/null; wait $$dit; exit $$status
	$(call latent,dit)
	@echo "The pictures: samples.png in $(LATENT)/dit/ and $(LATENT)/unet/, reconstructions in $(LATENT)/autoencoder/samples/"

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
