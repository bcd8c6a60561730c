# make train   set up what is missing, then the whole story on the mini world, to runs/mini/report.md
# make test    set up what is missing, then lint and every test this machine can run

SHELL := /bin/bash
BIN := .venv/bin

.PHONY: train test test-gpu lint format clean

train: .venv/ready
	$(BIN)/showo-dist mini

test: lint
	$(BIN)/python -m pytest tests

test-gpu: .venv/ready
	$(BIN)/python -m pytest tests -m gpu

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
