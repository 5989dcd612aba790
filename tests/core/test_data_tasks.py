"""Text files, splits and problems: their edges, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import data, tasks, texts
from minilora.data import PRINTABLE, Vocabulary
from minilora.tasks import IGNORED


@given(text=st.text(alphabet=PRINTABLE.characters, max_size=50))
def test_decoding_undoes_encoding(text):
    ids = PRINTABLE.encode(text)
    assert ids.dtype == np.int64 and ids.shape == (len(text),) and PRINTABLE.decode(ids) == text


@pytest.mark.parametrize("i", [-1, 3])
def test_an_id_of_no_character_is_refused(i):
    with pytest.raises(ValueError, match=f"The id {i} is outside the vocabulary of 3: use 0 to 2"):
        Vocabulary("abc").decode(np.array([0, i]))


@pytest.mark.parametrize("characters", ["", "aba"])
def test_a_vocabulary_needs_distinct_characters(characters):
    with pytest.raises(ValueError, match="at least one character, and each only once"):
        Vocabulary(characters)


def test_text_is_read_with_its_bom_and_line_ends_undone(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xc3\xa9")
    assert texts.read_text(tmp_path / "t.txt") == "one\ntwo é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x01\x02", "zero bytes"),
        (b"text \xff\xfe", "not UTF-8 text .byte 5"),
        ("text".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf", "is empty"),
        ("folder", "cannot be read"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "t.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        texts.read_text(path)
    assert "t.txt" in str(error.value) and str(error.value).endswith(".")


@given(length=st.integers(0, 3000), context=st.integers(1, 64))
def test_a_text_of_any_length_is_split_cleanly_or_refused(length, context):
    ids = np.arange(length)
    if length < 10 * (context + 1):
        with pytest.raises(ValueError, match=f"The text has {length} tokens; a context of {context} needs"):
            data.split(ids, context)
        return
    training, held_out = data.split(ids, context)
    assert sorted([*training, *held_out]) == list(ids)  # disjoint, and nothing lost
    blocks = np.split(held_out, np.flatnonzero(np.diff(held_out) != 1) + 1)
    assert len(blocks[0]) > context, "a held-out block fills one context and its target"
    for rng_seed in range(3):
        inside, targets = data.windows(held_out[: len(blocks[0])], 4, context, np.random.default_rng(rng_seed))
        assert not np.isin(np.concatenate([inside, targets]), training).any()


def test_windows_reach_both_ends():
    rng = np.random.default_rng(0)
    ids, targets = data.windows(np.arange(10), 500, 4, rng)
    assert ids.min() == 0 and targets.max() == 9
    assert (np.diff(ids) == 1).all() and np.array_equal(ids + 1, targets)


def test_batches_depend_on_seed_and_step_alone_and_fixed_ones_never_change():
    def draw(rng):
        return data.windows(np.arange(1000), 3, 5, rng)

    def same(a, b):
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    one, again, other = data.seeded(draw, 1), data.seeded(draw, 1), data.seeded(draw, 2)
    one(0)
    assert same(one(7), again(7)) and not same(one(7), other(7)) and not same(one(7), one(8))
    first, second = data.fixed(draw, 3), data.fixed(draw, 3)
    assert all(same(a, b) for a, b in zip(first, second, strict=True)) and not same(first[0], first[1])
    training = {one(step)[0].tobytes() for step in range(50)}
    assert not training & {batch[0].tobytes() for batch in first}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_maps_strings_to_strings_as_long_in_letters_the_model_knows(name):
    tag, f = tasks.TASKS[name]
    for s in ("abcd", "ponmlkji", "aaaa", "paapp"):
        assert len(f(s)) == len(s) and f(s).lower().strip(tasks.LETTERS) == ""
        assert set(tag + f(s)) <= set(PRINTABLE.characters)


def test_the_tasks_on_a_known_string():
    """Written out by hand; letters go round at p and a."""
    answers = {
        "copy": "pacman", "reverse": "namcap", "upper": "PACMAN", "sort": "aacmnp", "next": "abdnbo",
        "alternate": "pAcMaN", "rotate": "acmanp", "pairs": "apmcna", "revupper": "NAMCAP", "prev": "opblpm",
    }  # fmt: skip
    assert {name: f("pacman") for name, (_, f) in tasks.TASKS.items()} == answers
    assert set(tasks.PRETRAINING) | set(tasks.ADAPTATION) == set(tasks.TASKS)
    assert not set(tasks.PRETRAINING) & set(tasks.ADAPTATION)
    assert len({tag for tag, _ in tasks.TASKS.values()}) == len(tasks.TASKS)


@given(seed=st.integers(0, 1000), held_out=st.booleans())
def test_an_example_reads_tag_string_and_answer_and_is_scored_on_the_answer_only(seed, held_out):
    names = tasks.PRETRAINING
    ids, targets = tasks.string_batch(names, 6, np.random.default_rng(seed), held_out)
    by_tag = dict(tasks.TASKS.values())
    for row, target in zip(ids, targets, strict=True):
        question, answer = PRINTABLE.decode(row).rstrip("\n").split(">")
        assert answer == by_tag[question[0]](question[1:])
        scored = target != IGNORED
        assert PRINTABLE.decode(target[scored]) == answer + "\n"
        start = len(question)
        assert np.flatnonzero(scored).tolist() == list(range(start, start + len(answer) + 1))
        checksum = sum((i + 1) * tasks.LETTERS.index(c) for i, c in enumerate(question[1:]))
        assert (checksum % 10 == 0) is held_out


def test_held_out_strings_are_about_a_tenth_and_of_every_length():
    rng = np.random.default_rng(0)
    held_out = {PRINTABLE.decode(row).split(">")[0][1:] for row in tasks.string_batch(["copy"], 500, rng, True)[0]}
    assert {len(s) for s in held_out} == {4, 5, 6, 7, 8}


def test_every_task_named_is_drawn():
    ids, _ = tasks.string_batch(tasks.PRETRAINING, 300, np.random.default_rng(0))
    tags, counts = np.unique(ids[:, 0], return_counts=True)
    assert len(tags) == 7 and counts.min() > 20


def test_exact_match_needs_every_counted_token_and_no_other():
    targets = np.array([[IGNORED, 1, 2], [IGNORED, IGNORED, 0]])
    logits = np.zeros((2, 3, 4))
    logits[0, 1, 1] = logits[0, 2, 2] = logits[1, 2, 3] = 1
    assert tasks.exact_match(logits, targets) == 0.5
    logits[1, 2, 0] = 2
    assert tasks.exact_match(logits, targets) == 1.0
    logits[0, 1, 0] = 9  # one of two tokens wrong
    logits[:, 0, 3] = 9  # where nothing is counted
    assert tasks.exact_match(logits, targets) == 0.5
