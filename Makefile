help: ## what can be made
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/'

setup: ## install everything into the current environment
	pip install -e ".[search,dev,docs]"

docs: ## the documentation site, in site/
	mkdocs build --strict

check: ## style, sizes, types, import directions
	.ci/check

test: ## the fast tests
	python -m pytest -q -m "not slow" -n 2

demo: ## a search on the bundled model, in a few minutes
	python -m search +space=cache model=pixart

.PHONY: help setup docs check test demo
