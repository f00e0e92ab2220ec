# Everything runs in .venv, made on first use; the stamps in it say what is installed. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# so that what runs below finds the installed faq-deploy by name
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint docs bench check-speed fuzz matrix dist sbom clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

demo: $(VENV)/demo.stamp ## train a small net, quantize it to 8 and 4 bits, export, build, and show the verdict
	$(BIN)/faq-deploy demo -o runs/demo $(DEMO_ARGS)

test: lint ## lint, then the whole test suite (PYTEST_ARGS=--slow adds the slow tests)
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp ## ruff, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

docs: $(VENV)/dev.stamp ## the documentation as a site in site/; a warning is an error
	$(BIN)/mkdocs build --strict

bench: $(VENV)/dev.stamp ## every script in benchmarks/ that needs no photos, one after the other
	@set -e; for script in $$(grep -L required=True $$(grep -l __main__ benchmarks/*.py) | grep -v -e sweep.py -e trial.py -e check.py -e _page.py); do echo "== $$script"; $(BIN)/python $$script; done

check-speed: $(VENV)/dev.stamp ## ratios that the documentation states, measured again
	$(BIN)/python benchmarks/check.py

fuzz: $(VENV)/dev.stamp ## damaged inputs of every kind, 100,000 of them (COUNT=N for another number)
	$(BIN)/python -m tests.fuzz --count $(or $(COUNT),100000)

matrix: $(VENV)/dev.stamp ## lowest, pinned and newest versions, and partial installs, each in an environment of its own
	$(BIN)/python -m tests.matrix $(MATRIX_ARGS)

dist: $(VENV)/dev.stamp ## wheel and sdist of the last commit in dist/, the same bytes on every machine
	$(BIN)/python ci/dist.py

# The base install in an environment of its own, so that no tool of ours is listed
sbom: dist ## dist/sbom.cdx.json (CycloneDX): what the base install consists of
	rm -rf build/sbom
	$(BIN)/python -m venv --without-pip build/sbom
	$(BIN)/python -m pip --python build/sbom/bin/python install -qq --disable-pip-version-check -c constraints.txt dist/*.whl
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON -o dist/sbom.cdx.json build/sbom/bin/python

clean: ## remove .venv, caches, builds and the demo's run; other runs stay
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/venv.stamp:
	@test -n "$(PYTHON)" || { echo "faq-deploy needs Python 3.11, 3.12 or 3.13: install one, or name it with PYTHON=..." >&2; exit 3; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/venv.stamp
	@echo "Installing into $(VENV): the first time this takes minutes, torch is large."
	$(INSTALL) -e '.[torch,demo]'
	@$(INSTALL) -e '.[rtx]' || echo "TensorRT-RTX is not to be had for this platform: going on without its engines."
	@touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(INSTALL) -e '.[torch,demo,timm,docs,dev]'
	@$(INSTALL) --no-deps tensorrt-stubs || echo "TensorRT's type stubs are not to be had: going on without the test that reads them."
	@touch $@
