"""A short run of the fuzzer of files (`tests/stress/fuzz_files.py`), and what it would say of a fault."""

import pytest
from fuzz_files import MUTATIONS, run

from minilora.interop import checkpoint, gguf, peft


def test_files_changed_at_one_place_load_as_saved_or_are_refused():
    report = run(700)
    assert not report.failures
    assert sum(report.cases.values()) == 700
    assert {mutation for _, mutation, _ in report.cases} == {mutation.__name__ for mutation in MUTATIONS}
    assert {outcome for *_, outcome in report.cases} == {"loaded", "refused"}
    assert report.growth < 100e6  # bytes


@pytest.mark.parametrize(("module", "name"), [(peft, "_digest"), (checkpoint, "digest")], ids=["adapter", "checkpoint"])
def test_the_fuzzer_sees_a_digest_that_is_not_checked(monkeypatch, module, name):
    monkeypatch.setattr(module, name, lambda *_: "the same for all")
    assert any("loaded as something else" in failure for failure in run(300).failures)


def test_the_fuzzer_sees_another_exception(monkeypatch):
    parse = peft.parse_json

    def careless(*given):
        try:
            return parse(*given)
        except ValueError as error:
            raise KeyError("r") from error

    monkeypatch.setattr(peft, "parse_json", careless)
    assert any("KeyError: 'r'" in failure for failure in run(300).failures)


def test_the_fuzzer_sees_a_model_half_changed(monkeypatch):
    load = peft.load_adapter

    def hasty(model, folder):
        try:
            return load(model, folder)
        except peft.AdapterError:
            model.token_embedding.weight.data[0] += 1
            raise

    monkeypatch.setattr(peft, "load_adapter", hasty)
    assert any("changed by a load that failed" in failure for failure in run(300).failures)


def test_the_fuzzer_sees_numbers_that_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(gguf, "_finite", lambda *_: True)
    assert any("not finite" in failure for failure in run(100, only="gguf").failures)
