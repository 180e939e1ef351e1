# Everything runs in an environment of its own, made on first use; nothing needs to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MNIST ?=
QUICK ?=

.PHONY: help env demo test lint bench-rotation bench-robustness bench-paper bench-speed bench-scale bench-training clean

help:
	@echo "make demo                        the main job: fit, turn, align, one table and one picture"
	@echo "make test                        ruff, mypy, doctests and pytest"
	@echo "make bench-rotation MNIST=folder rotation on full MNIST (IDX files in folder)"
	@echo "make bench-robustness MNIST=folder [QUICK=--quick]  the table against other front-ends, in steps of 75 minutes"
	@echo "make bench-paper MNIST=folder [QUICK=--quick]       the paper's figures, in steps of 75 minutes"
	@echo "make bench-speed [MNIST=folder]  speed beside the loss that it reaches"
	@echo "make bench-scale                 memory and time on a million digits, and on dask"
	@echo "make bench-training              cost of training against a plain PyTorch loop"

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plot,test]'
	touch $@

demo: env
	$(BIN)/python examples/rotated_digits.py --output out/rotated_digits.png

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: env lint
	$(BIN)/python -m pytest -q

bench-rotation: env
	@test -n "$(MNIST)" || { echo "Say where MNIST's IDX files are: make bench-rotation MNIST=folder"; exit 2; }
	$(BIN)/python benchmarks/rotation.py $(MNIST)

bench-robustness: env
	@test -n "$(MNIST)" || { echo "Say where MNIST's IDX files are: make bench-robustness MNIST=folder"; exit 2; }
	$(BIN)/python benchmarks/robustness.py $(MNIST) $(QUICK) --time-limit 75

bench-paper: env
	@test -n "$(MNIST)" || { echo "Say where MNIST's IDX files are: make bench-paper MNIST=folder"; exit 2; }
	$(BIN)/python benchmarks/paper.py $(MNIST) $(QUICK) --time-limit 75

bench-speed: env
	$(BIN)/python benchmarks/speed.py $(MNIST)

bench-scale: env
	$(BIN)/python benchmarks/scale.py --dask

bench-training: env
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
