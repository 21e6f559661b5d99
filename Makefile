# Every target makes .venv first if it must, with the first Python that can be used and the pinned dependencies.
.DEFAULT_GOAL := help
.SUFFIXES:
.DELETE_ON_ERROR:

# DEVICE=gpu takes an environment of its own, with MXNet's GPU build.
GPU := $(filter gpu%,$(DEVICE))
VENV := .venv$(if $(GPU),-gpu)
PY := $(VENV)/bin/python
STAMP := $(VENV)/installed
READY := $(VENV)/compiled

# quoted VALUE: one word of the shell, whatever is in it (METHODS=noisin* is no pattern of file names)
quoted = '$(subst ','\'',$(1))'

# The stamp is written last and says for which folder and which pins the environment was made. A stopped install has
# none; after a change of the three files in `state`, in a moved or copied tree (the editable install would point to the
# old one), with its Python gone, or for another PYTHON=, the environment is made anew.
state = { pwd -P && cat pyproject.toml setup.py constraints.txt $(if $(GPU),requirements-gpu.txt) | cksum; }
whose = -c 'import sys; print(sys.base_prefix, sys.version)' 2>&1
current = [ -x $(PY) ] && [ "$$($(state))" = "$$(cat $(STAMP) 2>/dev/null)" ] \
  $(if $(PYTHON),&& [ "$$($(call quoted,$(PYTHON)) $(whose))" = "$$($(PY) $(whose))" ])
ifneq (yes,$(shell $(current) && echo yes))
.PHONY: $(STAMP)
endif

# option NAME,VARIABLE: --NAME VALUE if the variable was given
option = $(if $(strip $($(2))),--$(1) $(call quoted,$(strip $($(2)))))
NARROW = $(strip $(call option,epochs,EPOCHS) $(call option,methods,METHODS) $(call option,seeds,SEEDS) \
  $(call option,only,ONLY) $(call option,jobs,JOBS) $(call option,device,DEVICE) $(call option,dtype,DTYPE) $(ARGS))

.PHONY: help
help: ## this list (the default)
	@echo "make TARGET [VARIABLE=VALUE ...]; the first one that needs it also makes $(VENV), which takes a minute or two."
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1 /p' Makefile | while read -r target what; do \
	  printf '  %-15s %s\n' "$$target" "$$what"; done
	@echo "The experiments, from demo to objective, take"
	@echo "EPOCHS= METHODS= SEEDS= ONLY= JOBS= DEVICE= DTYPE= and ARGS=, for example:"
	@echo "  make ptb EPOCHS=1 METHODS='none,noisin*'"
	@echo "  make table2 ONLY=layers=2,activation=tanh"
	@echo "test takes PYTEST_ARGS=; PYTHON= names the Python to use, CC= the C compiler."

.PHONY: venv
venv: $(READY) ## make .venv with everything in it, and no more

# One at a time: a second make waits (its lock is this very file), and then finds the environment made.
ALONE = exec 9<Makefile; if command -v flock >/dev/null; then flock 9; fi
PYTHONS = $(if $(PYTHON),$(call quoted,$(PYTHON)),python3 $(patsubst %,python3.%,14 13 12 11 10 9 8))
usable = import sys; sys.exit(not ((3, 8) <= sys.version_info[:2] <= (3, 14) and sys.implementation.name == "cpython"))
$(STAMP):
	@$(ALONE); if $(current); then exit 0; fi; \
	for python in $(PYTHONS); do if "$$python" -c '$(usable)' 2>/dev/null; then \
	  "$$python" tools/make_venv.py $(VENV) $(if $(GPU),requirements-gpu.txt) && $(state) >$@ && touch $(READY); exit; \
	fi; done; echo "make: no CPython from 3.8 to 3.14 (tried" $(PYTHONS)"):" \
	  "apt-get install python3 python3-venv python3-dev, or make PYTHON=/path/to/python3" >&2; exit 2

# A changed C file needs no new environment.
$(READY): $(STAMP) $(wildcard src/noisin/native/*.[ch])
	@$(ALONE); if [ -z "$$(find src/noisin/native -name '*.[ch]' -newer $@ 2>&1)" ]; then exit 0; fi; \
	$(PY) setup.py -q build_ext --inplace --force && touch $@

# ---- the main job --------------------------------------------------------------------------------------------------

EXPERIMENTS := demo figure2 table2 table3 gamma rates lower-bound initialisation identity zaremba unroll spread settings \
  icml annealing objective
.PHONY: $(EXPERIMENTS) ptb wikitext2
demo: $(READY) ## compare the methods on the embedded synthetic corpus: a table, a figure, no download, about a minute
figure2: $(READY) ## compare the methods on the Penn Treebank: ours beside the paper's; resumes where it stopped
ptb: figure2 ## same as figure2
table2: $(READY) ## all 24 perplexities of Table 2 on the Penn Treebank, some 8 hours on two cores; ours beside the paper's
table3: $(READY) ## Table 3 of the paper: compare the methods on WikiText-2, most of a day
wikitext2: table3 ## same as table3
gamma: $(READY) ## choose gamma by validation, on three of the networks of Table 2
rates: $(READY) ## choose dropout's rates in the same way
lower-bound: $(READY) ## compare two readings of the bound that the paper sets a learned gamma
initialisation: $(READY) ## compare what the recurrent weights start from, on the 1-layer tanh network
identity: $(READY) ## Table 2's tanh and ReLU networks again, from the identity
zaremba: $(READY) ## the methods on a well-known small LSTM with a published perplexity, on the Penn Treebank
unroll: $(READY) ## what WikiText-2's batch and unroll cost that LSTM
spread: $(READY) ## choose the noise by validation on WikiText-2
settings: $(READY) ## what explains the paper's perplexity on WikiText-2: a tied decoder, standard dropout
icml: $(READY) ## dropout with noise of five families, as the paper's later version has it
annealing: $(READY) ## whether noise still helps plain RNNs when the learning rate decays
objective: $(READY) ## what the tighter objective does to a learned gamma, with ten trajectories
$(EXPERIMENTS):
	@$(PY) -m experiments $@ $(NARROW)

.PHONY: results figures
figures: results ## same as results
results: $(READY) ## rewrite the tables and figures of README.md and docs/ from the committed records
	@$(PY) -m experiments readme

.PHONY: report
report: $(READY) ## write report/: a page, tables and figures from the committed records; RUNS=runs: from your own runs
	@$(PY) -m experiments report $(call option,runs,RUNS) $(ARGS)

.PHONY: bench
bench: $(READY) ## time training steps against the limit of the matrix products and against peers; half an hour
	@$(PY) -m benchmarks $(ARGS)

.PHONY: notebooks
notebooks: $(READY) ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/figure2.ipynb $(ARGS)

# ---- development ---------------------------------------------------------------------------------------------------

.PHONY: test
test: $(READY) ## run the tests: one process a core, and then those that must be alone
	@$(PY) -m pytest $(or $(PYTEST_ARGS),-n auto -m "not alone")
	@$(if $(PYTEST_ARGS),,$(PY) -m pytest -m alone)

.PHONY: smoke
smoke: $(READY) ## run the few tests that show that it works on this Python, in under a minute
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m smoke $(PYTEST_ARGS)

.PHONY: smoke-all
smoke-all: ## the same on each Python from 3.8 to 3.14 that is found, each in an environment of its own
	@tools/smoke-all

.PHONY: lint
lint: $(READY) ## ruff (rules and format) and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy src/noisin experiments benchmarks

.PHONY: docs
docs: $(READY) ## build the site from the pages and the docstrings, in site/; a broken link is an error
	@$(PY) -m mkdocs build --strict --quiet

.PHONY: clean
clean: ## remove .venv, .venv-gpu, report/, site/, caches and build outputs; corpora in data/, results and runs/ stay
	@rm -rf .venv .venv-gpu report site build dist src/*.egg-info *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . \( -path ./.git -o -path ./data -o -path ./runs -o -path ./experiments/results \) -prune \
	  -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
