# `make serve` and `make test` work from a clean clone; everything lives in .venv.
PYTHON ?= python3
PROCESSES ?= 2
BIN := .venv/bin
PROJECTS := kernels $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)) .
PACKAGES := $(addprefix -e ,$(PROJECTS))
DEMO_FILES := config.json generation_config.json loss.svg model.safetensors tokenizer.json tokenizer_config.json training.json
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install install-dev serve test test-plain asan portable emulated parity fuzz screenshots bench kernels oldest-triton lint types imports readme clean

install: .venv/installed

install-dev: .venv/installed-dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "ActorLLM needs Python 3.11 to 3.13: make PYTHON=python3.12 install"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt $(addsuffix /pyproject.toml,$(PROJECTS)) | .venv/bin/python
	$(PIP) install -r requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation $(PACKAGES)
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(PIP) install -r requirements-dev.txt
	@touch $@

serve: install
	$(BIN)/actorllm serve $(MODEL)

test: install-dev # in two processes with a thread of torch's each: PROCESSES=0 runs all in one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PROCESSES)

test-plain: install-dev # messages between actors pass as they are, where a test does not choose their form
	TEST_MESSAGES=plain $(BIN)/python -m pytest -q tests/engine tests/server/test_golden.py -k "not encoded and not plain"

parity: install-dev
	PARITY_CONFIGS=20 $(BIN)/python -m pytest -q tests/parity

fuzz: install-dev
	FUZZ_SECONDS=60 $(BIN)/python -m pytest -q -s tests/server/chat/test_fuzz.py

kernels: install-dev # Triton kernels: many more random batches, and every shape compiled for sm_80, sm_89 and sm_90
	OMP_NUM_THREADS=1 KERNEL_CASES=90 $(BIN)/python -m pytest -q --timeout 3600 -n $(PROCESSES) tests/kernels --ignore tests/kernels/test_compile_ahead.py
	KERNEL_CASES=90 $(BIN)/python -m pytest -q tests/kernels/test_compile_ahead.py

oldest-triton: install-dev # the kernels' tests with the oldest Triton that is served, whose interpreter needs an older numpy
	$(PIP) install -q --no-deps --upgrade --target build/triton-3.6 triton==3.6.0 'numpy<2.4'
	PYTHONPATH=build/triton-3.6 $(BIN)/python -m pytest -q tests/kernels

CPU_KERNEL_TESTS := $(addprefix tests/kernels/test_,attention_cpu.py int8_cache_cpu.py elementwise_cpu.py linear.py \
	latent_attention.py tokens_cpu.py replay.py)

TEST_CPU_KERNELS := $(BIN)/python -c "from actorllm_kernels.native import library; assert library(), 'the kernels do not compile'" && \
	$(BIN)/python -m pytest -q -p no:cacheprovider --timeout 600 $(CPU_KERNEL_TESTS)

asan: install-dev # the C++ kernels' tests under the address and undefined-behaviour sanitizers
	export XDG_CACHE_HOME=build/asan ACTORLLM_CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0; $(TEST_CPU_KERNELS)

portable: install-dev # the same tests on the paths for processors without vector instructions
	export XDG_CACHE_HOME=build/portable ACTORLLM_CXXFLAGS=-march=x86-64; $(TEST_CPU_KERNELS)

emulated: install-dev # the same tests on the paths for AVX-512, AMX and AVX VNNI, their instructions as plain loops
	rm -rf build/emulated # a kept library's name does not tell which loops it has
	export XDG_CACHE_HOME=build/emulated; \
	for path in "-D__AVX512F__ -D__AVX512VNNI__" "-D__AVX512F__ -D__AVX512VNNI__ -D__AMX_INT8__ -D__AMX_BF16__" -D__AVXVNNI__; do \
		export ACTORLLM_CXXFLAGS="-march=x86-64 -O1 -D__AVX2__ $$path -I$(CURDIR)/tests/kernels/emulated"; \
		$(TEST_CPU_KERNELS) || exit 1; done

screenshots: install-dev
	$(BIN)/python -m tests.server.page.screenshots

bench: install-dev
	@failed=0; for file in tests/benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || failed=1; done; exit $$failed

.PHONY: train-demo judge-demo adopt-demo demo-card
train-demo: install-dev # writes build/demo; goes on from its last checkpoint
	$(BIN)/python -m examples.train_demo

adopt-demo: install-dev # build/demo becomes the demo model, with new scores and transcript
	cp $(addprefix build/demo/,$(DEMO_FILES)) actorllm/demo/
	$(BIN)/python -m tests.demo.card

demo-card: install-dev
	$(BIN)/python -m tests.demo.card

judge-demo: install-dev # every answer to the held-out questions, and the scores
	$(BIN)/python -m tests.demo.judge $(MODEL)

lint: install-dev
	$(BIN)/ruff check .

types: install-dev
	$(BIN)/pyright

readme: install-dev # the table of architectures, from plugins/*/pyproject.toml
	$(BIN)/python -m tests.house.architecture_table

imports: install-dev
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
