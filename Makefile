# The few commands a person types. Each does its own set-up; all share one environment.
#   PYTHON  the Python that makes the environment (3.11 or newer)
#   VENV    the environment's folder
#   ARGS    further arguments: make demo ARGS="--data my-sensors/"
#   APP     one app only, for acceptance

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
APP ?=

SETUP = $(PYTHON) scripts/setup.py --venv "$(VENV)"
BIN = $(VENV)/bin

.NOTPARALLEL:
.PHONY: help demo test lint ci acceptance bench clean

help:
	@echo "make demo        forecast the embedded roads with GMAN, compare with baselines, write a report"
	@echo "make test        the tests (slow ones apart) and each app's quick demo"
	@echo "make lint        ruff, mypy, import contracts"
	@echo "make ci          lint and test, as CI does"
	@echo "make acceptance  full demos, slow tests and claims; goes on where it stopped; APP=NAME for one app"
	@echo "make bench       speed against named peers, correctness first"
	@echo "make clean       remove what these commands made, but not the environment"

demo:
	@$(SETUP) demo
	$(BIN)/traffic-forecast demo $(ARGS)

test:
	@$(SETUP) test
	@$(BIN)/python -m scripts.check test $(ARGS)

lint:
	@$(SETUP) test
	@$(BIN)/python -m scripts.check lint $(ARGS)

ci:
	@$(SETUP) test
	@$(BIN)/python -m scripts.check lint test $(ARGS)

acceptance:
	@$(SETUP) test
	@$(BIN)/python -m scripts.acceptance $(if $(APP),--app "$(APP)") $(ARGS)

bench:
	@$(SETUP) test
	@$(BIN)/python -m benchmarks.run $(ARGS)

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find core kernels apps plugins tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
