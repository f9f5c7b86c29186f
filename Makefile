# `make demo` and `make test` need Python >= 3.11 and nothing else: they make .venv themselves.

PYTHON ?= $(shell command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/digits
LATENT := runs/shapes64

.PHONY: demo demo-latent demo-latent-dit demo-latent-dit-begun demo-latent-unet test test-slow lint clean

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

demo-latent: $(VENV)/.installed
	$(BIN)/diffusion-jax train --config configs/shapes64_autoencoder.py --workdir $(LATENT)/autoencoder
	$(BIN)/diffusion-jax encode --autoencoder kl-f4 --weights $(LATENT)/autoencoder --data shapes:images=6000 \
		--image-size 64 --out $(LATENT)/latents
	$(MAKE) --no-print-directory -j 2 demo-latent-unet demo-latent-dit-begun
	$(MAKE) --no-print-directory demo-latent-dit
	@echo "The pictures: samples.png in $(LATENT)/dit/ and $(LATENT)/unet/, reconstructions in $(LATENT)/autoencoder/samples/"

# Models as small as these gain little from a second core: the UNet and the first part of the DiT's training run side by
# side with one thread each (XLA reads NPROC). Then the DiT resumes with both cores.
demo-latent-dit-begun: $(VENV)/.installed
	NPROC=1 $(BIN)/diffusion-jax train --config configs/shapes64_latent_dit.py --workdir $(LATENT)/dit \
		--config.train.steps=1400

demo-latent-unet: export NPROC := 1

demo-latent-dit demo-latent-unet: demo-latent-%: $(VENV)/.installed
	$(BIN)/diffusion-jax train --config configs/shapes64_latent_$*.py --workdir $(LATENT)/$*
	$(BIN)/diffusion-jax sample --workdir $(LATENT)/$* --out $(LATENT)/$*/samples --num 400 --cfg-scale 2 --overwrite
	$(BIN)/diffusion-jax evaluate --samples $(LATENT)/$*/samples/samples.npz --reference shapes \
		--out $(LATENT)/$*/result.json --overwrite
	cp $(LATENT)/$*/samples/samples.png $(LATENT)/$*/samples.png

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
