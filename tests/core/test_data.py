"""Text, splits, batches, string tasks."""

import sys

import numpy as np
import pytest

from minilora import data, tasks, texts
from minilora.data import PRINTABLE, Vocabulary


def test_a_vocabulary_reads_what_it_wrote():
    text = "Hello,\nLoRA!"
    np.testing.assert_array_equal(PRINTABLE.encode("\n ~"), [0, 1, 95])
    assert len(PRINTABLE) == 96 and PRINTABLE.decode(PRINTABLE.encode(text)) == text
    with pytest.raises(ValueError, match=r"'é' \(position 3\) is not among the 96"):
        PRINTABLE.encode("café")
    with pytest.raises(ValueError, match="only once"):
        Vocabulary("aa")


@pytest.mark.parametrize(
    ("text", "replaced", "count"),
    [
        ("plain\n~", "plain\n~", 0),
        ("“It’s”, ‘so’ «so»", '"It\'s", \'so\' "so"', 7),
        ("a–b—c‑d−e…", "a-b-c-d-e...", 5),
        ("no\u00a0break\u2009thin\ttab", "no break thin    tab", 3),
        ("café naïve Ångström", "cafe naive Angstrom", 4),
        ("cafe\u0301 zero\u200bwidth \ufeff", "cafe zerowidth ", 3),  # decomposed, and what is not seen
        ("½ ﬁ ™ Straße Ærø", "1/2 fi TM Strasse AEro", 6),
        ("a\rb\x85c\u2028d", "a\nb\nc\nd", 3),
        ("한 日 😀 \udcff \x07", "? ? ? ? ?", 5),
    ],
)
def test_what_a_vocabulary_does_not_know_becomes_what_it_looks_like(text, replaced, count):
    assert texts.replace_unknown(text, PRINTABLE) == (replaced, count)
    PRINTABLE.encode(replaced)


def test_what_a_vocabulary_knows_is_never_replaced():
    own = Vocabulary("abe?é’")
    assert texts.replace_unknown("é’“ëx", own) == ("é’?e?", 3)  # no straight quote here, and no x


def test_a_refused_character_names_what_replaces_it():
    with pytest.raises(ValueError, match=r"--replace, or texts\.replace_unknown"):
        PRINTABLE.encode("“")


def test_real_text_is_there_and_printable():
    for text in (texts.english_text(), texts.python_source()):
        assert len(text) > 200_000
        PRINTABLE.encode(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"abc\0def", "binary"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts.read_text(path)


def test_what_can_be_no_file_s_name_is_no_text(tmp_path):
    for name in ("zero\0byte", "half\ud800", "n" * 5000, str(tmp_path)):
        with pytest.raises(ValueError, match=r"The text file .* cannot be read: "):
            texts.read_text(name)


def test_held_out_blocks_are_never_trained_on():
    training, held_out = data.split(np.arange(100_000), context_length=64)
    assert not set(training) & set(held_out) and len(training) + len(held_out) == 100_000
    assert 0.08 < len(held_out) / 100_000 < 0.12
    with pytest.raises(ValueError, match="needs at least 650"):
        data.split(np.arange(600), context_length=64)


def test_windows_and_their_targets(rng):
    ids, targets = data.windows(np.arange(1000), 5, 7, rng)
    assert ids.shape == targets.shape == (5, 7)
    np.testing.assert_array_equal(targets, ids + 1)
    draw = data.seeded(lambda r: data.windows(np.arange(1000), 5, 7, r), seed=3)
    np.testing.assert_array_equal(draw(11)[0], draw(11)[0])
    assert not np.array_equal(draw(11)[0], draw(12)[0])


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("copy", "badge"), ("reverse", "egdab"), ("upper", "BADGE"), ("sort", "abdeg"), ("next", "cbehf"),
        ("alternate", "bAdGe"), ("rotate", "adgeb"), ("pairs", "abgde"), ("revupper", "EGDAB"), ("prev", "apcfd"),
    ],
)  # fmt: skip
def test_string_functions(task, answer):
    assert tasks.TASKS[task][1]("badge") == answer


@pytest.mark.parametrize("task", tasks.TASKS)
def test_only_the_answer_is_scored(task, rng):
    ids, targets = tasks.string_batch([task], 50, rng)
    tag, f = tasks.TASKS[task]
    assert ids.shape == targets.shape == (50, tasks.WIDTH)
    for row, target in zip(ids, targets, strict=True):
        line = PRINTABLE.decode(row).split("\n")[0]
        s = line[1 : line.index(">")]
        assert line[0] == tag and 4 <= len(s) <= 8
        scored = np.flatnonzero(target != tasks.IGNORED)
        assert PRINTABLE.decode(target[scored]) == f(s) + "\n"
        assert scored[0] == line.index(">") and len(scored) == len(s) + 1


def test_held_out_strings_are_never_trained_on(rng):
    def strings(held_out):
        ids, _ = tasks.string_batch(["copy"], 3000, rng, held_out)
        return {PRINTABLE.decode(row).split(">")[0] for row in ids}

    assert not strings(False) & strings(True)
    with pytest.raises(ValueError, match="no string task 'revers'; there are: copy, reverse"):
        tasks.string_batch(["revers"], 1, rng)


def test_exact_match_counts_whole_answers(rng):
    _, targets = tasks.string_batch(["copy"], 4, rng)
    logits = np.eye(96)[np.where(targets == tasks.IGNORED, 0, targets)]
    assert tasks.exact_match(logits, targets) == 1
    row, place = 2, np.flatnonzero(targets[2] != tasks.IGNORED)[1]
    logits[row, place] = np.eye(96)[95]
    assert tasks.exact_match(logits, targets) == 0.75


def test_a_python_without_its_sources_or_its_reference_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(texts.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match=r"argparse.py cannot be read .*without the sources"):
        texts.python_source()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match="without its language reference"):
        texts.english_text()
