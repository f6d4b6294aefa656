PYTHON ?= python3
OUT ?= out
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
# pytest's exit status for "no test was collected".
NO_TESTS := 5
# The GPU tests of the file $1, reported when they are over: one line, or all if one fails.
GPU_TESTS = out=$$(timeout --foreground -k 5 150 $(PYTHON) -m pytest -q -m gpu "$$1" 2>&1); status=$$?; \
  case $$status in \
    0) echo "$$1: $$(echo "$$out" | tail -n 1)" ;; \
    $(NO_TESTS)) ;; \
    *) echo "$$1: exit $$status"; echo "$$out"; exit 1 ;; \
  esac
# What the suite runs there: with the compiled way it would take minutes more.
GPU_SUITE := -k bench_generate --presets videoar-l,par-4x --batches 1 --ways eager,bare \
  --suite-device cuda --suite-seconds 110

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
	$(BIN)/clang-format --dry-run -Werror csrc/*.h csrc/*.inl csrc/*.cpp

bench: .stamp-venv ## run the benchmarks (BENCH='--presets videoar-xl --batches 1')
	$(BIN)/pytest -q benchmarks --benchmark-only $(BENCH)

# A step that fails or runs past its seconds does not keep the others from running; together they
# end within 9 minutes. The tests spend their time in Triton's compiler, which is serial: a process
# for each file. A benchmark's long last line goes to gpu-check.json and gpu-report/ alone.
gpu-check: ## on a CUDA machine: build with its own Python, test and time the kernels on the GPU
	@$(PYTHON) -c 'import sys, torch; \
	  sys.exit(None if torch.cuda.is_available() else "gpu-check: torch sees no CUDA device")'
	@failed=0; summary=; \
	step() { \
	  name=$$1; seconds=$$2; shift 2; echo "== $$name"; \
	  timeout -k 5 $$seconds "$$@"; status=$$?; result="exit $$status"; \
	  [ $$status -ne 124 ] || result="stopped after $$seconds s"; \
	  [ $$status -ne $(NO_TESTS) ] || result="no test"; \
	  case $$result in "exit 0" | "no test") ;; *) failed=1 ;; esac; \
	  summary="$$summary$$(printf '%-14s%s' $$name "$$result");"; \
	}; \
	step build 80 $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .; \
	step tests 165 sh -c '{ ls tests/kernels/test_*.py; grep -lF mark.gpu tests/*/test_*.py; } | \
	  sort -u | xargs -P 8 -I{} sh -c "$$0" sh {}' '$(GPU_TESTS)'; \
	[ ! -f benchmarks/aot.py ] || step aot 45 $(PYTHON) -m videoar.benchmarks.aot --fast; \
	step kernels 100 sh -c 'exec "$$@" >gpu-check.txt' sh $(PYTHON) \
	  -m videoar.benchmarks.kernels --quick --seconds 65 --out gpu-check.json; \
	sed '/^{/d' gpu-check.txt; \
	step environment 15 $(PYTHON) -m videoar.benchmarks.environment; \
	step report 130 sh -c 'exec "$$@" >gpu-check.txt' sh $(PYTHON) \
	  -m videoar.benchmarks.report --out gpu-report -- $(GPU_SUITE); \
	sed '/^{/d' gpu-check.txt; \
	printf '%s' "$$summary" | tr ';' '\n'; exit $$failed

clean: ## remove what the other verbs made, except the environment .venv
	rm -rf .stamp-* build dist out gpu-check.json gpu-check.txt gpu-report *.egg-info videoar/_C.*.so
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
	$(INSTALL) -e '.[dev,train,footage]'
	@touch .stamp-core $@
