"""PyTorch, transformers and PEFT, which need the extra `parity`: a test that imports this is skipped without them."""

import warnings

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other libraries warn about while they are imported
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install -e '.[parity]'")
    transformers = pytest.importorskip("transformers", reason="transformers is missing: pip install -e '.[parity]'")
