# The two commands are `make run` and `make test`; `make help` lists the others. All of them install
# what is missing and build first. CMake users need none of this: cmake --preset cpu.

JOBS ?= $(shell nproc)

# The CUDA backend is built where there is a GPU and nvcc; CUDA=1 demands it, CUDA=0 leaves it out.
CUDA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && PATH="$$PATH:/usr/local/cuda/bin" command -v nvcc \
  >/dev/null && echo 1 || echo 0)
PRESET = $(if $(filter-out 0,$(CUDA)),cuda,cpu)
PROGRAM = build/$(PRESET)/apps/flashmha
ON = $(if $(filter cuda,$(PRESET)),--device cuda)

help:
	@echo 'make run      sanity check, benchmark (plain against flash), a model trained and sampled'
	@echo 'make test     all tests'
	@echo 'make asan     all tests under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make tsan     all tests under ThreadSanitizer'
	@echo 'make fuzz     looks for input files that break the readers, SECONDS=60 for each of TARGETS'
	@echo 'make program  the program alone: build/cpu/apps/flashmha, or build/cuda/apps/flashmha'
	@echo 'make install  library, headers and program into PREFIX (/usr/local)'
	@echo 'make format   clang-format on every source file'
	@echo 'make clean    removes build/'
	@echo 'CUDA=1        with the CUDA backend (default: where there is a GPU and nvcc); CUDA=0 without'
	@echo 'JOBS=N        parallel jobs of builds and tests (default: all CPUs)'

program:
	@scripts/setup.sh run
	@cmake --preset $(PRESET) -DFLASHMHA_BUILD_TESTS=OFF --log-level=WARNING
	@cmake --build --preset $(PRESET) --target flashmha_program --parallel $(JOBS)

# A text that every Debian system has; elsewhere our own documents.
TEXT = $(firstword $(wildcard /usr/share/common-licenses) docs)
TRAINED = build/first-model

run: program
	$(PROGRAM) sanity-check $(ON)
	$(PROGRAM) benchmark --batch-size 2 --seq-length 256 $(ON)
	@cmake -E rm -rf $(TRAINED)
	$(PROGRAM) train --data $(TEXT) --output $(TRAINED) --steps 600 --layers 4 --hidden 128 --heads 4 \
	  --seq-length 256 --batch-size 4 --learning-rate 4e-3 $(ON)
	$(PROGRAM) generate --model $(TRAINED) --prompt 'This program is free software' --echo \
	  --max-new-tokens 200 --temperature 0.7 --seed 1 $(ON)

# $(call run_tests,preset)
define run_tests
	@scripts/setup.sh test
	@cmake --preset $(1) -DFLASHMHA_BUILD_TESTS=ON --log-level=WARNING
	@cmake --build --preset $(1) --parallel $(JOBS)
	@ctest --preset $(1) --parallel $(JOBS)
endef

test:
	$(call run_tests,$(PRESET))

asan:
	$(call run_tests,asan)

tsan:
	$(call run_tests,tsan)

# Findings lie in build/fuzz/findings; a run goes on where the last one ended.
fuzz: SECONDS ?= 60
fuzz: TARGETS ?= $(shell sed -n 's/^set(FLASHMHA_FUZZ_TARGETS \(.*\))/\1/p' tests/fuzz/targets.cmake)
fuzz:
	@scripts/setup.sh test
	@for target in $(TARGETS); do scripts/fuzz.sh $$target $(SECONDS) || exit 1; done

install: PREFIX ?= /usr/local
install: program
	@cmake --build --preset $(PRESET) --parallel $(JOBS)
	@cmake --install build/$(PRESET) --prefix $(PREFIX)

format:
	@scripts/setup.sh test
	@scripts/format.sh --fix

clean:
	@cmake -E rm -rf build

.PHONY: help program run test asan tsan fuzz install format clean
