"""A method's name is all that configurations, caches and the file of learning rates know of it."""

import pytest

from minilora.claims import tuning
from minilora.claims.methods import (
    BITFIT,
    FULL,
    LAST_BLOCK,
    Adapter,
    LoRA,
    Method,
    Prefix,
    Prompt,
    Subset,
    Subspace,
    named,
)


def test_a_method_is_found_by_its_name():
    names = {
        "full": FULL, "last-block": LAST_BLOCK, "bitfit": BITFIT, "prompt 8": Prompt(8), "prefix 2": Prefix(2),
        "adapter-h 4": Adapter("h", 4), "adapter-l 16": Adapter("l", 16), "subspace 64": Subspace(64),
        "subset 64": Subset(64),
        "lora q,k,v,o 2": LoRA("q,k,v,o", 2), "lora all 16": LoRA("all", 16),
    }  # fmt: skip
    for name, method in names.items():
        assert method.name == str(method) == name and named(name) == method
    for methods in tuning.METHODS.values():
        assert all(named(method.name) == method for method in methods)
    assert (
        Prompt(8).positions == Prefix(8).positions == 8 and LoRA("q,v", 4).positions == Adapter("h", 4).positions == 0
    )


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(ValueError, match=r"There is no method 'ia3 4'\."):
        Method("ia3", 4).prepare(None, 0)
