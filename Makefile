# make install set up: everything that train.py, eval.py and the scripts need
# make demo    set up, train on the digits, evaluate what was trained
# make test    set up, run the tests
# make test-gpu   set up, run the tests that need a CUDA GPU (minutes; without a GPU each is skipped)
# make test-slow  set up, run the tests that take minutes: detection and segmentation overfit small sets (half an hour)
# make lint    set up, run ruff and mypy
# make bench   set up, measure our models beside timm's (half an hour on two cores), write bench.json
#
# PYTHON=/path/to/python picks the interpreter (3.11 or later).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
DEMO := runs/demo/$(shell date +%Y%m%d-%H%M%S)

.PHONY: install demo test test-gpu test-slow lint bench clean

install: $(VENV)/train.installed
	@echo "installed into $(VENV); now: source $(VENV)/bin/activate"

demo: $(VENV)/train.installed
	$(RUN) train.py run_dir=$(DEMO)
	$(RUN) eval.py checkpoint=$(DEMO) run_dir=$(DEMO)-eval
	@echo "look at $(DEMO)/top1_vs_resolution.png and $(DEMO)-eval/results.csv"

# worksteal: neighbours go to one process, so that the runs which the tests of a file share are trained once.
test: $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

test-gpu: $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 4 -m gpu -vv -ra --durations=10 $$(grep -rl --include='*.py' mark.gpu tests)

test-slow: $(VENV)/test.installed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal -m slow -rP

lint: $(VENV)/test.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(VENV)/train.installed
	$(RUN) scripts/benchmark.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

KERNELS := $(wildcard xcit/kernels/cpu/*.cpp xcit/kernels/cpu/*.h)

# Installed once, and again when pyproject.toml or what is compiled changes or PYTHON is another interpreter.
# --no-compile: Python compiles a module when it is imported. To compile all of torch here would take half a minute.
$(VENV)/%.installed: pyproject.toml $(KERNELS) $(VENV)/interpreter
	@echo "installing into $(VENV) (some minutes, once)"
	@$(PIP) install --no-compile -e '.[$(if $(filter test,$*),train$(comma)test,$*)]'
	@touch $@

# pip shows progress while it installs from version 25.1 on, and is faster than the one that comes with Python 3.11.
$(VENV)/interpreter: FORCE
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("PYTHON=%s is Python %d.%d: must be 3.11 or later" % (sys.executable, *sys.version_info[:2]))'
	@wanted="$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable), sys.version)')"; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$wanted" ]; then \
	    echo "making $(VENV)"; \
	    rm -rf $(VENV) && $(PYTHON) -m venv $(VENV) && $(PIP) install -q 'pip>=25.1' && echo "$$wanted" > $@; \
	fi

comma := ,
FORCE:
