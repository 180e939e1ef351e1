# Everything runs in an environment of its own, made on first use; nothing needs to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MNIST ?=
QUICK ?=
ZOO ?=
CALLS ?= 10000
MINUTES ?= 10
SAMPLE ?= 60
JOBS ?= 2
DIST ?=

.PHONY: help env demo test test-oldest test-package lint soak mutate coverage docs docs-fast docs-test pictures release-check clean
.PHONY: bench-fit bench-zoo bench-images bench-rotation bench-rotated bench-robustness bench-paper bench-speed bench-scale bench-training bench-defaults bench-confidence bench-perturbed bench-import

help:
	@echo "Use it"
	@echo "  make demo                                           the main job: fit, rotate, align, one table and one picture"
	@echo "Check it"
	@echo "  make test [JOBS=2]                                  ruff, mypy, doctests and pytest, in so many processes"
	@echo "  make lint                                           ruff and mypy alone"
	@echo "  make coverage                                       lines and branches of sk_avae that the tests run"
	@echo "  make mutate [SAMPLE=60]                             whether the tests notice changes to model/ and search/"
	@echo "  make soak [CALLS=10000] [MINUTES=10]                hostile calls and files, load, a cluster that loses a worker"
	@echo "  make test-oldest                                    pytest with the oldest supported releases (downloads about 3 GB)"
	@echo "  make test-package                                   wheel and sdist, each installed by itself and tried with the README"
	@echo "Measure it: one script each in benchmarks/, tables in benchmarks/results/ (MNIST: folder with the IDX files)"
	@echo "  make bench-rotation MNIST=folder                    rotated MNIST, all of it: accuracy and angle errors"
	@echo "  make bench-rotated MNIST=folder [QUICK=--quick]     12,000 rotated digits, no upright one, 50,000 to read"
	@echo "  make bench-robustness MNIST=folder [QUICK=--quick]  other front-ends, perturbations and classifiers, in steps of 75 minutes"
	@echo "  make bench-paper MNIST=folder [QUICK=--quick]       the paper's figures and tables, in steps of 75 minutes"
	@echo "  make bench-speed [MNIST=folder]                     ms per image beside the loss reached, against the paper's search"
	@echo "  make bench-scale                                    memory and time on a million digits, and on dask"
	@echo "  make bench-training                                 cost of training against a plain PyTorch loop"
	@echo "  make bench-defaults MNIST=folder ZOO=folder         epochs, restarts and refinements that \"auto\" stands for"
	@echo "  make bench-confidence ZOO=folder                    how many wrong poses the least confident images hold"
	@echo "  make bench-fit ZOO=folder MNIST=folder              what a fit costs beside its VAE, and one image alone"
	@echo "  make bench-zoo ZOO=folder [QUICK=--quick]           other people's images: accuracy, right poses, what fit foretold"
	@echo "  make bench-images ZOO=folder MNIST=folder           dark, noisy, incomplete and large images"
	@echo "  make bench-perturbed                                restarts that a grid search takes, by upright and by turned folds"
	@echo "  make bench-import                                   time of import, against torch, skorch and scikit-learn"
	@echo "Docs"
	@echo "  make docs                                           these pages into docs/_build/html, examples run"
	@echo "  make docs-fast                                      the same without running the examples"
	@echo "  make docs-test                                      docs-fast, then every page opened in Chromium"
	@echo "  make pictures                                       those of the pages on how it works and when not to use it"
	@echo "Release it"
	@echo "  make release-check [QUICK=--quick]                  the checklist: what can be checked, and what is left to do"
	@echo "Start over"
	@echo "  make clean                                          remove environments and all that was built"

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plot,test]'
	touch $@

demo: env
	$(BIN)/python examples/rotated_digits.py --output out/rotated_digits.png

# Processes of one thread each: two threads that share a core wait for one another. Tests of a file stay together.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: env lint
	$(PYTEST)

# The lower bounds of pyproject.toml, in an environment of their own. ruff and mypy look at the newest only.
OLDEST := .venv-oldest

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[plot,test]'
	touch $@

test-oldest: $(OLDEST)/.installed
	$(PYTEST:$(BIN)%=$(OLDEST)/bin%)

test-package: env
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python tests/try_package.py $(if $(DIST),--keep $(DIST))

# Separate from what the tests need: a stamp of its own.
$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs,plot,test]'
	touch $@

# One thread: the examples are small, and their figures should not depend on the number of cores.
SPHINX = OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html

docs: $(VENV)/.installed-docs
	$(SPHINX) docs docs/_build/html

docs-fast: $(VENV)/.installed-docs
	$(SPHINX) -D plot_gallery=0 docs docs/_build/html

docs-test: docs-fast
	$(BIN)/python -m pytest -q tests/test_docs.py

pictures: env
	OMP_NUM_THREADS=1 $(BIN)/python docs/draw.py

release-check: env
	$(BIN)/python tests/release_check.py $(QUICK)

# For many threads in one process, see docs/scaling.md.
ONE_HEAP = MALLOC_ARENA_MAX=1 LRU_CACHE_CAPACITY=16 ONEDNN_PRIMITIVE_CACHE_CAPACITY=16

soak: env
	OMP_NUM_THREADS=1 $(ONE_HEAP) $(BIN)/python tests/soak.py --calls $(CALLS) --minutes $(MINUTES)

mutate: env
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutate.py --sample $(SAMPLE)

coverage: env
	$(PYTEST) --cov=sk_avae --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95

NEEDS_MNIST = @test -n "$(MNIST)" || { echo "Say where MNIST's IDX files are: make $@ MNIST=folder"; exit 2; }

bench-rotation: env
	$(NEEDS_MNIST)
	$(BIN)/python benchmarks/rotation.py $(MNIST)

bench-rotated: env
	$(NEEDS_MNIST)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rotated_training.py $(MNIST) $(QUICK)

bench-robustness: env
	$(NEEDS_MNIST)
	$(BIN)/python benchmarks/robustness.py $(MNIST) $(QUICK) --time-limit 75

bench-paper: env
	$(NEEDS_MNIST)
	$(BIN)/python benchmarks/paper.py $(MNIST) $(QUICK) --time-limit 75

bench-speed: env
	$(BIN)/python benchmarks/speed.py $(MNIST)

bench-scale: env
	$(BIN)/python benchmarks/scale.py --dask

bench-training: env
	$(BIN)/python benchmarks/training.py

bench-defaults: env
	@test -n "$(ZOO)" || { echo "Say where sets of images (.npz) are: make bench-defaults ZOO=folder MNIST=folder"; exit 2; }
	$(NEEDS_MNIST)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/defaults.py $(ZOO) $(MNIST)

bench-confidence: env
	@test -n "$(ZOO)" || { echo "Say where sets of images (.npz) are: make bench-confidence ZOO=folder"; exit 2; }
	$(BIN)/python benchmarks/risk_coverage.py $(ZOO)

bench-fit: env
	@test -n "$(ZOO)" || { echo "Say where sets of images (.npz) are: make bench-fit ZOO=folder MNIST=folder"; exit 2; }
	$(NEEDS_MNIST)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fitting.py $(ZOO) $(MNIST) --grid

bench-zoo: env
	@test -n "$(ZOO)" || { echo "Say where sets of images (.npz) are: make bench-zoo ZOO=folder"; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py $(ZOO) $(QUICK)

bench-images: env
	@test -n "$(ZOO)" || { echo "Say where sets of images (.npz) are: make bench-images ZOO=folder MNIST=folder"; exit 2; }
	$(NEEDS_MNIST)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/images_as_they_come.py $(ZOO) $(MNIST) --without

bench-perturbed: env
	$(BIN)/python benchmarks/perturbed_scorer.py

bench-import: env
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/import_time.py

clean:
	rm -rf $(VENV) $(OLDEST) build dist out docs/_build docs/gallery docs/generated .pytest_cache .mypy_cache .ruff_cache
