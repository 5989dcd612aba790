"""Ten thousand files changed at one place, as `python tests/stress/fuzz_files.py` tries them.

python -m pytest -m stress tests/stress
"""

import pytest
from fuzz_files import run

pytestmark = pytest.mark.stress


def test_ten_thousand_changed_files():
    report = run(10_000)
    print(report.table())
    assert not report.failures
    assert sum(report.cases.values()) == 10_000
    assert report.growth < 100e6  # bytes


def test_two_thousand_changed_gguf_files():
    report = run(2_000, seed=1, only="gguf")
    print(report.table())
    assert not report.failures
    assert sum(report.cases.values()) == 2_000
    assert report.growth < 100e6  # bytes
