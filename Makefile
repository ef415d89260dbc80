# Needs Python >= 3.11, pip and make. Everything is installed into .venv, once.
PYTHON ?= python3
python := .venv/bin/python

.PHONY: demo lab demos slides book pictures test notebooks bench

demo: .venv/installed  # the tour: SmolLM2 answers, a class is graded, a report is written
	$(python) -m autograder demo

lab: .venv/installed  # the course, in JupyterLab
	$(python) -m autograder lab

demos: .venv/installed  # live, for a lecture, in a browser
	cd demos && ../$(python) -m jupytext --quiet --to ipynb *.md && JUPYTER_PATH=. ../$(python) -m voila

slides: .venv/installed  # every chapter with its solutions and outputs, in build/slides/
	$(python) -m autograder slides

book: .venv/installed  # the chapters as they ran, the guides and llmkit's reference, as a site
	$(python) -m sphinx -q docs build/book
	@echo "The book: build/book/index.html"

pictures: .venv/installed  # the README's, drawn anew in docs/_static/; needs Chromium
	$(python) -m docs.pictures

test: .venv/installed  # everything that gates a change
	$(python) -m ruff check . && $(python) -m ruff format --check .
	$(python) -m autograder build --check
	$(python) -m pytest -n auto --dist loadgroup

notebooks: .venv/installed  # every chapter run in full into build/executed/, its numbers compared
	$(python) -m pytest -v -m notebooks --durations=0 --durations-min=1

bench: .venv/installed  # side by side with what a user would pick instead
	$(python) -m benchmarks

# torch is named with its version, so that pip takes a CPU build where only that is at hand.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.11." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python .venv install -c constraints.txt $(shell grep ^torch== constraints.txt) -e '.[grader,teach,cluster,bench,test]'
	@touch $@
