"""Measurements made up for the claims' rules, and what holds for the numbers of every outcome."""

import json
import re

from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE, WORLDS, Settings, over_worlds


def made_up(claim, result, bases=3, long=True):
    """All runs of a claim, each with `result(configuration)`."""
    return [(c, result(c)) for c in claim.configurations(Settings(bases, long=long))]


def learned(accuracy=0.99, bits=2.5, before=3.0, **of):
    """Results of the shared experiment. `of`: "lora_qv_4" -> (accuracy, bits) of that method, each a number, a tuple of
    each base's, or a function of the configuration."""

    def result(c):
        method, base = c["method"], c["base"][1]
        right, loss = of.get(method.replace(" ", "_").replace(",", "").replace("-", "_"), (accuracy, bits))
        right, loss = (v(c) if callable(v) else v[base] if isinstance(v, tuple) else v for v in (right, loss))
        return {"accuracy": right, "bits": loss, "bits_at_end": loss, "before": before, "trainable": 2048}

    return result


def rank_result(small=0.005, text_small=2.05, planted_loss=0.0):
    """Of the claim `rank`: r = 4 is so far behind on strings, and loses so much on text."""
    shared = learned(0.9, 0.0, before=3.0)

    def result(c):
        if c.get("world") == "planted":
            return {"loss": planted_loss, "floor": 0.0, "start": 30.0}
        least = 0.001 if c["base"][0] == "strings" else 2.0
        loss = least
        if c["method"] == "lora q,v 4":
            of = small if c["base"][0] == "strings" else text_small
            loss = of[c["base"][1]] if isinstance(of, tuple) else of
            loss += least if c["base"][0] == "strings" else 0
        return {**shared(c), "bits": loss}

    return result


def shaken(x, rng):
    """The same, each float up to half larger or smaller."""
    if isinstance(x, dict):
        return {key: shaken(value, rng) for key, value in x.items()}
    if isinstance(x, tuple):  # a run
        return x[0], shaken(x[1], rng)
    if isinstance(x, list):
        return [shaken(value, rng) for value in x]
    return x * (0.5 + rng.random()) if isinstance(x, float) else x


def check_numbers(outcome):
    """What holds for the numbers of every outcome."""
    assert 0 < len(outcome.key.split()) <= 12 and re.search(r"\d", outcome.key), outcome.key
    assert outcome.verdicts.keys() <= set(WORLDS)
    assert (
        outcome.verdict == over_worlds(list(outcome.verdicts.values())) in (HOLDS, FAILS, NOISE, MIXED, "not decided")
    )
    names = [(m.part.world, m.part.name) for m in outcome.measurements]
    assert len(set(names)) == len(names) > 0
    written = json.loads(json.dumps([m.as_json() for m in outcome.measurements], allow_nan=False))
    for m, row in zip(outcome.measurements, written, strict=True):
        assert m.part.world in (*WORLDS, "time") and m.part.unit in ("%", "bits", "ms", "bytes", "")
        assert row["n"] == len(row["values"]) > 0 and None not in row["values"]
        assert (row["deviation"] is None) == (row["interval"] is None) == (row["n"] == 1)
        assert (row["quartiles"] is not None) == (m.part.world == "time")
        assert (row["rule"] is None) == (row["verdict"] is None) == (m.part.rule is None)


NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
SCALES = {"bytes": (1, 1e-3, 1e-6)}  # as bytes, kB and MB


def stands_for(text, value, unit):
    """Whether a printed number is a value, as it is rounded to the last digit printed."""
    digits, _, power = text.replace(",", "").partition("e")
    last = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return any(
        abs(abs(value) * scale - float(f"{digits}e{power or 0}")) <= 0.5001 * last for scale in SCALES.get(unit, (1,))
    )


def assert_the_sentence_is_in_the_numbers(outcome, settings):
    """Every number of `measured` is a mean, an end of an interval or a median of the measurements, or one of these
    settings: ranks, steps, what theory says."""
    known = []
    for m in outcome.measurements:
        row = m.as_json()
        known += [(v, m.part.unit) for v in (row["value"], *(row["interval"] or ()), *(row["quartiles"] or ()))]
    for text in re.findall(NUMBER, re.sub(r"φ\(\d,\d\)|d₉₀", "", outcome.measured)):
        text = text.rstrip(",")
        found = text in settings or any(stands_for(text, *of) for of in known)
        assert found, f"{text} is not among the measurements: {outcome.measured}"
