"""The two bases that come with the package: which files they are, what they can do, and that nothing is pretrained."""

import hashlib
import json
from importlib.resources import files

import numpy as np
import pytest

from minilora import claims
from minilora.bases import held_out_strings, load_base
from minilora.claims import bases
from minilora.claims.bases import SHIPPED, text_sampler
from minilora.claims.claim import Settings
from minilora.data import fixed
from minilora.interop.checkpoint import read_notes
from minilora.tasks import ADAPTATION, PRETRAINING
from minilora.texts import BITS
from minilora.tools import ship_bases
from minilora.training import evaluate, evaluate_exact_match

DIGESTS = {
    "strings": "e4ce5269f3b73b70c2776c9a23df6fe78a63bdbcd339e5d85533c87033b9ca2f",
    "text": "dd548dd3b03c9c7134e19bab0d5209ac50921e8b3daf0e5210eff54c1ef49e05",
}


@pytest.mark.parametrize("world", DIGESTS)
def test_the_files_are_those_that_were_committed_and_say_what_made_them(world, tmp_path):
    file = files("minilora") / "bases" / f"{world}.npz"
    data = file.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGESTS[world] and len(data) < 500_000
    (tmp_path / "base.npz").write_bytes(data)
    recipe = read_notes(tmp_path / "base.npz")["configuration"]
    made_of = json.loads(json.dumps({**bases.WORLDS[world], "world": world, "seed": 0}))
    assert made_of == {name: recipe[name] for name in made_of}
    assert recipe["python"] and recipe["numpy"]


@pytest.mark.numpy_only("made by NumPy; a GPU reads the same numbers")
def test_the_base_of_strings_knows_the_seven_tasks_and_none_of_the_three():
    model = load_base("strings")
    for task in PRETRAINING:
        assert evaluate_exact_match(model, held_out_strings(task)) >= 0.9, task
    for task in ADAPTATION:
        assert evaluate_exact_match(model, held_out_strings(task)) <= 0.01, task


@pytest.mark.numpy_only("made by NumPy; a GPU reads the same numbers")
def test_the_base_of_text_reads_english_better_than_code():
    """ln 96 is 6.6 bits. Other versions of Python have another English, nearly the same."""
    model = load_base("text")
    english, code = (fixed(text_sampler(which, 32, held_out=True), 4) for which in ("english", "code"))
    assert BITS * evaluate(model, english) < 2.2 and 2.7 < BITS * evaluate(model, code) < 3.6


def test_nothing_is_pretrained_for_a_first_look(monkeypatch, tmp_path):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setattr(bases, "pretrain", lambda *_: pytest.fail("a base was pretrained"))
    for world in DIGESTS:
        one, two = load_base(world), load_base(world)
        assert one is not two and one.num_parameters() > 100_000
        one.lm_head.weight.data[...] = 0
        assert np.abs(load_base(world).lm_head.weight.numpy()).max() > 0
    assert not (tmp_path / "nothing").exists()


def test_a_quick_run_starts_from_them_and_a_full_one_from_its_own():
    for claim in claims.CLAIMS:
        for settings, expected in ((Settings(1, quick=True), {SHIPPED}), (Settings(3), {0, 1, 2})):
            used = {c["base"][1] for c in claim.configurations(settings) if "base" in c}
            assert used <= expected, claim.id
    assert Settings(2, quick=True).bases == [SHIPPED, 1]


def test_the_command_that_makes_them_writes_what_the_package_has(monkeypatch, tmp_path):
    monkeypatch.setattr(ship_bases, "pretrain", lambda world, seed: load_base(world))
    ship_bases.ship(tmp_path)
    for world in DIGESTS:
        assert read_notes(tmp_path / f"{world}.npz")["configuration"]["seed"] == 0
