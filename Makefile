PYTHON ?= python3
OUT ?= out
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
# pytest's exit status for "no test was collected".
NO_TESTS := 5

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench gpu-check clean
# Two verbs at once would install into one environment at the same time.
.NOTPARALLEL:

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

demo: .stamp-core ## generate a clip with the shipped model into out/ (OUT=folder)
	$(BIN)/videoar demo --out $(OUT)

test: .stamp-venv ## run the tests
	$(BIN)/pytest -q

lint: .stamp-venv ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror csrc/*.h csrc/*.cpp

bench: .stamp-venv ## run the benchmarks
	@$(BIN)/pytest -q --benchmark-only benchmarks || { status=$$?; \
	  [ $$status -eq $(NO_TESTS) ] && echo "benchmarks/ holds no benchmark yet."; }

gpu-check: ## on a CUDA machine: build with its own Python, run the kernels on the GPU
	@$(PYTHON) -c 'import sys, torch; \
	  sys.exit(None if torch.cuda.is_available() else "gpu-check: torch sees no CUDA device")'
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	@$(PYTHON) -m pytest -q -m gpu tests/kernels || { status=$$?; \
	  [ $$status -eq $(NO_TESTS) ] && echo "No test carries the marker gpu."; }
	@$(PYTHON) -m videoar.benchmarks.environment

clean: ## remove what the other verbs made, except the environment .venv
	rm -rf .stamp-* build dist out *.egg-info videoar/_C.*.so
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks
	find $(wildcard videoar kernels runtime training benchmarks tests assets) \
	  -name __pycache__ -prune -exec rm -rf {} +

# A stamp depends on this file and not on the interpreter, whose date is that of Python itself.
$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

.stamp-core: $(VENV)/pyvenv.cfg $(PACKAGE)
	$(INSTALL) -e .
	@touch $@

# The larger installation covers the smaller one, so that `make test demo` installs once.
.stamp-venv: $(VENV)/pyvenv.cfg $(PACKAGE)
	$(INSTALL) -e '.[dev,train]'
	@touch .stamp-core $@
