# make train   set up what is missing, then the whole story on the mini world, to runs/mini/report.md
# make test    set up what is missing, then lint and the tests that this machine can run in 20 minutes
# make test-chaos, test-cluster, test-cluster48, test-gpu    the longer ones, and those that need more

SHELL := /bin/bash
BIN := .venv/bin

.PHONY: train test test-gpu test-chaos test-cluster test-cluster48 lint format clean

train: .venv/ready
	$(BIN)/showo-dist mini

test: lint
	$(BIN)/python -m pytest tests

# On a bare CUDA image too, with its own python: nothing is installed.
test-gpu:
	benchmarks/gpu_suite.sh --tests

test-chaos: .venv/ready
	$(BIN)/python -m pytest tests -m chaos

test-cluster: .venv/ready
	$(BIN)/python -m pytest tests -rs -m "cluster and not cluster48"

test-cluster48: .venv/ready
	$(BIN)/python -m pytest tests -rs -m cluster48

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs data build *.egg-info

.venv/ready: pyproject.toml setup.py launchers/install.sh
	launchers/install.sh
	touch $@
