# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
DEVICES := qnn openvino openvino-ir coreml litert webgpu genai
PACKAGES_qnn := onnxruntime-qnn==2.7.0
PACKAGES_openvino := onnxruntime-ep-openvino==1.8.1
PACKAGES_openvino-ir := openvino==2026.4.1 nncf==3.4.0 openvino-telemetry psutil pydot scipy tabulate
PACKAGES_coreml := coremltools==9.0 cattrs attrs pyaml tqdm sympy mpmath packaging
PACKAGES_litert := litert-torch==0.10.0 litert-converter==0.5.0 ai-edge-litert==2.3.0 ai-edge-quantizer==0.10.0 \
  torchao==0.18.0 jax==0.10.2 jaxlib==0.10.2 scipy opt_einsum absl-py immutabledict
PACKAGES_genai := onnxruntime-genai==0.18.0
PACKAGES_webgpu := onnxruntime-webgpu==1.27.0
TESTS_qnn := tests/runtime/test_plugins_installed.py tests/runtime/test_ahead_of_time.py
TESTS_openvino := tests/runtime/test_plugins_installed.py
TESTS_openvino-ir := tests/exporters/targets/test_openvino_ir.py
TESTS_coreml := tests/exporters/targets/test_coreml_package.py -p no:logging
TESTS_litert := tests/exporters/targets/test_litert.py
TESTS_genai := tests/exporters/targets/test_genai.py tests/exporters/targets/test_genai_tokenizer.py
TESTS_webgpu := tests/exporters/targets/test_web.py
# A GPU in software.
NEEDS_webgpu := , Debian's package chromium-common
PREPARE_webgpu := -m tests.swiftshader .devices/swiftshader
ENVIRONMENT_webgpu := LD_LIBRARY_PATH=$(CURDIR)/.devices/swiftshader/lib VK_ICD_FILENAMES=$(CURDIR)/.devices/swiftshader/lib/vk_swiftshader_icd.json

.PHONY: demo test test-oldest boards test-arm64 devices web test-web test-page fuzz check bench clean

demo: .venv/ready            ## export, verify, inspect and stream the shipped checkpoint
	$(BIN)/xlstm-edge demo

test: .venv/ready            ## the whole test suite, on two to four cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-oldest: .venv/ready .oldest/ready   ## the runtime on the oldest versions that it claims
	OLDEST=$(CURDIR)/.oldest OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/test_oldest.py

boards: .venv/ready          ## emulated ARM64 boards, once: Debian on x86-64, as root
	$(BIN)/python tests/arm64/boards.py prepare .boards

test-arm64: boards           ## the shipped model on emulated ARM64 boards
	BOARDS=$(CURDIR)/.boards OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/arm64

devices: $(DEVICES:%=devices-%)   ## other runtimes and simulators, each beside the project in a folder of its own

# Packages alone, without what they ask for: what the tests need of that is in .venv. An onnxruntime of another kind comes
# before that of .venv. Exit code 3 of a preparation says, as pip does, what cannot be had; any other failure is one.
devices-%: .venv/ready
	@code=0; \
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .devices/$* $(PACKAGES_$*) || code=3; \
	if [ $$code = 0 ] && [ -n "$(PREPARE_$*)" ]; then $(BIN)/python $(PREPARE_$*) || code=$$?; fi; \
	if [ $$code = 0 ]; then \
	  out=$$($(ENVIRONMENT_$*) PYTHONPATH=$(CURDIR)/.devices/$* OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS_$*) 2>&1); code=$$?; \
	  echo "$$out"; \
	  if [ $$code = 0 ] && ! echo "$$out" | grep -q " passed"; then \
	    echo "skipped: no test of $* ran on this machine, for the reasons above"; \
	  fi; \
	  exit $$code; \
	elif [ $$code = 3 ]; then \
	  echo "skipped: the tests of $* need $(PACKAGES_$*)$(NEEDS_$*), which cannot be had on this machine"; \
	else \
	  exit $$code; \
	fi

web: build/web/ready         ## build the page of examples/web and serve it on this machine: needs Node.js 20
	node examples/web/serve.mjs build/web

test-web: build/web/ready    ## the runtime in TypeScript and the page: Node.js, WebAssembly, and Chromium if it is installed
	cd runtime/web && npm run check && npm test
	cd examples/web && npm test

# Of these, what `make test` leaves out.
test-page: build/web/ready
	cd runtime/web && npm run check && npm run test:webgpu
	cd examples/web && npm test

# The page with the shipped model, and the packages of both from their lock files. `npm test` says what it leaves out without
# a browser.
build/web/ready: .venv/ready $(wildcard runtime/web/src/*.ts runtime/web/package*.json examples/web/*)
	cd runtime/web && npm ci --silent && npm run --silent build
	cd examples/web && npm ci --silent
	mkdir -p build/web
	test -e build/web/bundle/manifest.json || $(BIN)/xlstm-edge export examples/shakespeare -o build/web/bundle --target web --quantize int4
	cd examples/web && npm run --silent build
	touch $@

fuzz: .venv/ready            ## a million mutations of everything untrusted that is read; about 40 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.fuzz.run --mutations 1000000

check: .venv/ready           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready           ## speed and memory of the shipped checkpoint
	$(BIN)/xlstm-edge export examples/shakespeare -o demo-bundle --force
	$(BIN)/xlstm-edge bench demo-bundle --threads 1

# torch first and pinned: a range would take the newest build with several GB of CUDA libraries. The official packages
# are what the tests compare with; their own dependencies (notebooks, plotting, Triton) are not needed for that.
.venv/ready: pyproject.toml Makefile
	@echo "Setting up .venv, once: about 1 GB of packages, a minute or a few."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps xlstm==2.0.6 mlstm_kernels==2.0.6
	touch $@

# The lower bounds in pyproject.toml, and for static targets the onnxruntime that their manifests ask for.
.oldest/ready: pyproject.toml Makefile
	$(PYTHON) -m venv .oldest/cpu && .oldest/cpu/bin/python -m pip install --quiet --no-compile numpy==1.26.0 onnxruntime==1.26.0 tokenizers==0.21.0
	$(PYTHON) -m venv .oldest/portable && .oldest/portable/bin/python -m pip install --quiet --no-compile numpy==1.26.0 onnxruntime==1.17.0
	touch $@

clean:
	rm -rf .venv .oldest .boards .devices build demo-bundle runtime/web/node_modules examples/web/node_modules
