# What developers and CI run. A target makes the virtual environment that it needs, and renews it when pyproject.toml
# or constraints.txt has changed. Needs Python >= 3.11: `make test PYTHON=python3.12` picks another one.

PYTHON ?= python3

# --constraint alone would leave the build backend unpinned
install = $(1)/bin/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt

# pip comes first: the one that venv brings may know neither --group nor --build-constraint
define environment
$(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --constraint constraints.txt pip
endef

.PHONY: run test lint docs picture mutants fuzz sensitivity verification-time benchmark recalibration torch-patterns
.PHONY: architectures fixtures clean

run: .venv/run.stamp
	mkdir -p build
	.venv/bin/bnfold optimize fixtures/digits.onnx -o build/digits.folded.onnx --force

test: lint
	.venv/bin/python -m pytest -n 2

lint: .venv/test.stamp
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/run.stamp
	.venv/bin/python -m bnfold.render.reasons > docs/reasons.md
	.venv/bin/python -m bnfold.render.schema docs/schema

# What README.md shows of a report; needs chromium.
picture: .venv/test.stamp
	mkdir -p build
	cp fixtures/digits.onnx build
	cd build && ../.venv/bin/bnfold optimize digits.onnx --force --quiet --report report.html
	chromium --headless=new --no-sandbox --hide-scrollbars --window-size=1000,1680 --screenshot=docs/report.png \
	  "file://$(CURDIR)/build/report.html"

mutants: .venv/test.stamp
	.venv/bin/python tests/mutants.py

# Takes hours; what breaks a promise is left in build/fuzz.
fuzz: .venv/test.stamp
	.venv/bin/python tests/fuzz.py --count 20000
	.venv/bin/python tests/fuzz_files.py 20000

sensitivity: .venv/test.stamp
	.venv/bin/python benchmarks/sensitivity.py

verification-time: .venv/run.stamp
	.venv/bin/python benchmarks/verification_time.py

benchmark: .venv-benchmark/stamp
	.venv-benchmark/bin/python benchmarks/run.py

recalibration: .venv-benchmark/stamp
	.venv-benchmark/bin/python benchmarks/recalibration.py

torch-patterns: .venv/test.stamp
	.venv/bin/python benchmarks/torch_patterns.py

architectures: .venv-architectures/stamp
	.venv-architectures/bin/python benchmarks/architectures.py

fixtures: .venv-fixtures/stamp
	.venv-fixtures/bin/python fixtures/make.py

clean:
	rm -rf .venv .venv-benchmark .venv-architectures .venv-fixtures build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/run.stamp: pyproject.toml constraints.txt
	$(call environment,.venv)
	$(call install,.venv) --editable .
	touch $@

.venv/test.stamp: .venv/run.stamp
	$(call install,.venv) --group test
	touch $@

.venv-benchmark/stamp: pyproject.toml constraints.txt
	$(call environment,.venv-benchmark)
	$(call install,.venv-benchmark) --editable . --group benchmark
	touch $@

.venv-fixtures/stamp: pyproject.toml constraints.txt
	$(call environment,.venv-fixtures)
	$(call install,.venv-fixtures) --group fixtures
	touch $@

.venv-architectures/stamp: pyproject.toml constraints.txt
	$(call environment,.venv-architectures)
	$(call install,.venv-architectures) --editable . --group benchmark --group architectures
	touch $@
