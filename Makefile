# `make` alone lists what there is.
PYTHON ?= python3
UV := uv>=0.8,<1
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A suite that starts hundreds of processes must not compile all that each of them imports anew: uv installs sources
# alone, and containers often set this.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock simulate test slow long soak shuffle search lint types check contract docs bench clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv and install a tested set of packages (by uv, which pip brings)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedvision needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev,ray]"
	@touch $@

lock:  ## choose the newest versions that fit pyproject.toml, for Python 3.11 and later, and write constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)"
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt pyproject.toml

simulate: $(READY)  ## run the first simulation: 20 clients, a long tail, two losses compared
	$(BIN)/fedvision simulate simulations/first.toml

test: $(READY)  ## run the tests, but for those that are slow or take long
	$(BIN)/pytest -n 2

slow: $(READY)  ## run the tests that take several seconds each, more processes and engines: `.ci/run` does so as well
	$(BIN)/pytest -n 2 -m "slow and not long and not soak"

long: $(READY)  ## run the tests that take long: whole federations as processes, real data (root, Linux)
	$(BIN)/pytest -n 2 -m "long and not soak"

soak: $(READY)  ## run the tests that take minutes each: bad lines and sleeping machines, one by one (root, Linux)
	$(BIN)/pytest -m soak

shuffle: $(READY)  ## run the tests of `make test` and `make slow` in a random order, whose seed the first lines name
	$(BIN)/pytest -n 2 -p randomly --randomly-dont-reset-seed -m "not long and not soak"

search: $(READY)  ## run the tests of properties on new random input, and more of it
	$(BIN)/pytest -n 2 --hypothesis-profile=new -m hypothesis

lint: $(READY)  ## check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## check types
	$(BIN)/mypy

check: lint types test  ## all of the above

contract: $(READY)  ## run the contract tests with the oldest and the newest Flower allowed, each in an environment of its own
	UV=$(BIN)/uv .ci/contract 1.41 1.42

docs: $(READY)  ## build the documentation as a site, build/site; a link that leads nowhere fails
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/build_site.py

bench: $(READY)  ## measure beside plain PyTorch, pfl and Flower, the short form (below ten minutes)
	$(BIN)/python benchmarks/peers.py --name short --workloads w1 --rounds 10 --repetitions 1

clean:  ## remove the environment and caches; runs are kept
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
