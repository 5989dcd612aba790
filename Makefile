# Short names for what is done often; CONTRIBUTING.md says what each takes.
export OPENBLAS_NUM_THREADS = 1
export OMP_NUM_THREADS = 1

.PHONY: test check notebooks figures bench ci

test:
	python -m pytest

check:
	ruff format --check .
	ruff check .
	mypy

notebooks:
	python notebooks/build.py

figures:
	python -m minilora reproduce --seeds 8 --long
	python docs/front.py

bench:
	python benchmarks/step_time.py

ci:
	bash .ci/run
