"""report.html: whole, escaped, in one file that loads nothing, and there even where a figure is not."""

import base64
import re
from html.parser import HTMLParser

import pytest
from made_up_report import report_rows

from minilora.claims.claim import UNDECIDED, Settings
from minilora.claims.page import page, write_page
from minilora.claims.report import count_verdicts, markdown, number, verdict_whole

FULL = Settings(3)
VOID = {"meta", "link", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\n a picture"


class Page(HTMLParser):
    """Its tags, its text, and whether each tag that opens is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def made(settings=FULL, rows=None, failed=None):
    rows = report_rows() if rows is None else rows
    figures = {row["figure"]: PNG for row in rows if row["figure"] not in (failed or {})}
    text = page(rows, settings, figures, failed)
    return text, Page(text)


def test_it_is_well_formed_and_holds_every_claim_and_value():
    _, parsed = made()
    assert parsed.open == [] and len(parsed.all("details")) == 14
    for row in report_rows():
        for field in ("short", "statement", "where", "key", "paper", "rule", "measured", "spread"):
            assert " ".join(row[field].split()) in parsed.words, (row["id"], field)
        assert verdict_whole(row) in parsed.words
        for measurement in row["measurements"]:
            assert measurement["name"] in parsed.words
            assert number(measurement["value"], measurement["unit"]) in parsed.words
            if measurement["n"] > 1:
                assert " ".join(map(number, measurement["values"])) in parsed.words
    assert count_verdicts(report_rows()) in parsed.words


def test_it_loads_nothing_and_runs_nothing():
    text, parsed = made()
    assert not re.search(r"https?:|//|@import|url\(", text.replace("<!DOCTYPE html>", ""))
    assert not parsed.all("script") and not any(name.startswith("on") for _, a in parsed.tags for name in a)
    sources = [a["src"] for a in parsed.all("img")]
    prefix = "data:image/png;base64,"
    assert len(sources) == 14 and all(base64.b64decode(source.removeprefix(prefix)) == PNG for source in sources)
    assert all(a["alt"] for a in parsed.all("img"))
    assert [a["href"] for a in parsed.all("link")] == ["data:,"]


def test_every_link_leads_to_its_claim():
    _, parsed = made()
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert [a["href"] for a in parsed.all("a")] == [f"#{name}" for name in ids] and len(set(ids)) == 14


def test_verdicts_are_words_and_not_only_colours():
    row = report_rows()[3]
    _, parsed = made(rows=[row])
    assert "r = 8 answers 99 % of full's ✓ holds ✗ does not hold ✓ holds" in parsed.words
    row = {**row, "verdicts": {"text": UNDECIDED}, "verdict": UNDECIDED}
    _, parsed = made(Settings(1, quick=True), [row])
    assert "· not judged ? not decided · not judged" in parsed.words
    assert (
        parsed.words.count("A first look: one base, short runs; equalities are decided") == 1
        and "Spread" not in parsed.words
    )


@pytest.mark.parametrize("field", ["id", "short", "statement", "where", "key", "paper", "rule", "measured", "verdict"])
def test_what_a_claim_says_is_escaped(field):
    nasty = '"><script>&amp;'
    text, parsed = made(rows=[{**report_rows()[0], field: nasty}])
    assert not parsed.all("script") and nasty not in text and parsed.open == []
    assert nasty in parsed.words or field == "id"


def test_a_figure_that_failed_is_named_and_an_old_one_is_not_shown_for_it(tmp_path):
    rows = report_rows()[:2]
    for row in rows:
        (tmp_path / row["figure"]).write_bytes(PNG)
    write_page(tmp_path, rows, Settings(3), {"zero_init.png": "<no> latex"})
    parsed = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "zero_init.png could not be drawn: <no> latex." in parsed.words and len(parsed.all("img")) == 1


def test_the_markdown_has_a_short_table_and_then_each_claim():
    rows = report_rows()
    text = markdown(rows, Settings(3))
    table = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    assert table[0] == "| claim | key number | strings | text | exact |" and len(table) == 16
    assert table[5] == "| A very small r is enough | r = 8 answers 99 % of full's | holds | does not hold | holds |"
    assert text.count("\n## ") == 14 and "| a step | time | 12.8 ms | 12.6 to 13 | 3 |  |" in text
    assert "| share of full fine-tuning at r = 8 | strings | 99.0 % | 98.5 to 99.5 | 3 | holds |" in text
    assert "**holds on strings and what is exact, does not hold on text** (§3" in text
    assert all(row["rule"] in text and f"]({row['figure']})" in text for row in rows)
    named = {**rows[0], "key": "‖ΔW‖ | r"}
    assert "| ‖ΔW‖ \\| r |" in markdown([named], Settings(3))
