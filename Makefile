# make train            install what is missing, train on the mini world and write runs/mini/report.md
# make train backbone=qwen3   the same with another backbone, in runs/mini/qwen3
# make check            lint, types and the fast tests, in about two minutes on two cores
# make test             lint, types and the tests that this machine can run, without those of the commands below, in 20 minutes
# make test-slow        more runs that are killed or frozen, compiled blocks on every engine, and measured memory
# make test-story       all stages one after another: of the mini world, of a reproduction, and killed between
# make test-gpu         the tests that need a GPU
# make test-fuzz        100,000 random damages; a later call resumes; rm runs/fuzz.json starts again
# make test-chaos       runs of which ranks, or data workers, are killed a hundred times
# make test-learning    a small comparison of RecA with its alternatives, and its loss curve, in about twelve minutes
# make test-muon        Muon on every engine and number of ranks, in about two minutes
# make test-backbones   every family on every engine, number of ranks and split, and all of transformers' families; 45 minutes
# make test-cluster     rehearsed hosts (root and the packages of docs/launchers/rehearse.md)
# make test-cluster48   48 ranks on 6 rehearsed hosts (20 GB of memory)
# make lint             ruff and mypy
# make format           ruff's fixes and formatting
# make clean            remove the environment, runs and data

SHELL := /bin/bash
BIN := .venv/bin

# About 1,400 tests. The kernel tests left out compile code or try hundreds of layouts.
FAST := $(addprefix tests/, house config sequences kernels parity data)
SLOWER := $(addprefix --ignore=tests/kernels/test_, attention.py compiled.py native.py)

# Many tests wait for processes, so two of their files are run at a time, in order: those of few tests take long,
# and xdist would keep them for the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: train check test test-slow test-gpu test-fuzz test-chaos test-learning test-muon test-backbones test-story
.PHONY: test-cluster test-cluster48 lint format clean

train: .venv/ready
	$(BIN)/showo-dist mini $(if $(backbone),--backbone $(backbone))

check: lint
	$(PYTEST) $(FAST) $(SLOWER) -m "not slow and not gpu"

test: lint
	$(PYTEST) tests

test-slow: .venv/ready
	$(PYTEST) tests -m slow

# Installs nothing, so it also runs on a bare CUDA image with its own python.
test-gpu:
	benchmarks/gpu_suite.sh --tests

test-fuzz: .venv/ready
	$(BIN)/python tests/fuzz.py

test-chaos: .venv/ready
	$(BIN)/python -m pytest tests -m chaos

test-learning: .venv/ready
	rm -rf runs/mini_paper_quick
	$(BIN)/python benchmarks/mini_paper.py --quick

test-muon: .venv/ready
	$(BIN)/python -m pytest tests -m muon

test-backbones: .venv/ready
	$(BIN)/python -m pytest -n 2 tests -m backbones

test-story: .venv/ready
	$(PYTEST) -m story tests

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
