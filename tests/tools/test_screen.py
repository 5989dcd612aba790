"""The report on a terminal: lines that fit, marks that every console shows, one claim whole, and what show refuses."""

import io
import json
import sys
from pathlib import Path

import pytest
from made_up_report import report_rows

from minilora.claims.claim import FAILS, HOLDS, MIXED, NOISE, UNDECIDED, Settings
from minilora.claims.report import TERMS, count_verdicts, number, read_report, terms, write_report
from minilora.tools import screen
from minilora.tools.cli import main

UNICODE, ASCII = screen.signs("utf-8"), screen.signs("ascii")


def lines(columns, shown=UNICODE):
    rows = report_rows()
    column = screen.column_for([row["short"] for row in rows], columns)
    return [screen.claim_line(row, column, columns, shown) for row in rows]


@pytest.fixture
def report(tmp_path):
    write_report(tmp_path / "report", report_rows(), Settings(3))
    return tmp_path / "report"


# ---- one line a claim --------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [UNICODE, ASCII], ids=["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_claim_is_one_line_that_fits(columns, shown):
    settings = Settings(1, quick=True)
    for line in lines(columns, shown):
        assert len(line) <= columns and "\n" not in line
    if columns >= 80:
        column = screen.column_for([row["short"] for row in report_rows()], columns)
        assert max(map(len, screen.head(column, settings, shown).splitlines())) <= columns


def test_the_marks_stand_for_strings_text_and_exact_in_this_order():
    row = {**report_rows()[0], "verdicts": {"exact": NOISE, "strings": HOLDS, "text": FAILS}}
    assert screen.claim_line(row, 10, 80, UNICODE).startswith("✓ ✗ ~  B = 0 sta…  logits bit-equal")
    assert screen.claim_line(row, 10, 80, ASCII).startswith("y n ~  B = 0 s...  logits bit-equal")
    assert screen.claim_line({**row, "verdicts": {"text": UNDECIDED}}, 10, 80, UNICODE).startswith("· ? ·  B")
    legend, names = screen.head(24, Settings(3), UNICODE).splitlines()
    assert legend == "✓ holds  ✗ does not hold  ~ within noise  · not judged"
    assert names.startswith("s t e  ") and names.endswith("  key number")


def test_what_does_not_fit_is_cut_with_an_ellipsis_and_what_fits_is_whole():
    at_80, at_120 = lines(80), lines(120)
    assert any(line.endswith("…") for line in at_80) and not any("…" in line for line in at_120)
    assert all(
        row["short"] in line and line.endswith(row["key"]) for row, line in zip(report_rows(), at_120, strict=True)
    )
    assert screen.cut("abcdef", 6, "…") == "abcdef" and screen.cut("abcdefg", 6, "…") == "abcde…"
    assert screen.cut("abcdefg", 6, "...") == "abc..." and screen.cut("ab defg", 4, "…") == "ab…"


@pytest.mark.parametrize("said, columns", [("1", 40), ("100", 100), ("0", 80), ("wide", 80)])
def test_the_width_is_the_terminal_s_and_80_where_there_is_none(said, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", said)
    monkeypatch.setattr(sys, "__stdout__", io.StringIO())
    assert screen.console()[0] == columns


def test_a_console_without_the_signs_gets_letters():
    assert screen.signs("cp1252") == screen.signs("ascii") == screen.signs(None) == screen.signs("no encoding") == ASCII
    assert all(sign.isascii() for sign in ASCII.values()) and screen.signs("UTF-8") == UNICODE


def test_that_a_quick_run_decides_little_is_said_once():
    one, three = (screen.head(30, Settings(n, quick=True), UNICODE) for n in (1, 3))
    first, legend, _ = one.splitlines()
    assert first == "A first look: one base, short runs; equalities are decided, nothing else is."
    assert legend == "✓ holds  ✗ does not hold  ? not decided  · not judged"
    assert three.startswith("A first look: 3 bases, short runs;")
    assert "first look" not in screen.head(30, Settings(1), UNICODE)
    assert not any("decided" in line for line in lines(80))


def test_the_committed_report_fits_80_columns_whole():
    rows, settings = read_report(Path(__file__).parents[2] / "figures")
    column = screen.column_for([row["short"] for row in rows], 80)
    assert settings == Settings(8, long=True) and not any(
        "…" in screen.claim_line(row, column, 80, UNICODE) for row in rows
    )


def test_a_list_names_the_claims(report, capsys):
    assert main(["show", "--out", str(report)]) == 0
    what, legend, names, *table, blank, last = capsys.readouterr().out.splitlines()
    assert what == f"The report in {report}: full, 3 bases." and legend.startswith("✓ holds")
    assert names.startswith("s t e  ") and names.index("claim,") == table[0].index("B = 0")
    assert [line.split()[3] for line in table] == [row["id"] for row in report_rows()]
    assert table[3].startswith("✓ ✗ ✓  rank ") and table[3].endswith("  A very small r is enough")
    assert blank == "" and last == f"One of them whole: minilora show zero_init --out {report}"


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    row = report_rows()[3]
    assert "\x1b" not in screen.claim_line(row, 30, 80, UNICODE)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("WT_SESSION", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert screen.claim_line(row, 30, 80, UNICODE).startswith(
        "\x1b[32m✓\x1b[0m \x1b[31m✗\x1b[0m \x1b[32m✓\x1b[0m  A very"
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in screen.claim_line(row, 30, 80, UNICODE)


def test_verdicts_are_counted_in_words():
    rows = [{"verdict": verdict} for verdict in (HOLDS, HOLDS, FAILS, NOISE, MIXED)]
    said = "5 claims: 2 hold, 1 differs by world, 1 does not hold at this scale, 1 within noise"
    assert count_verdicts(rows) == said
    assert count_verdicts(rows[:1]) == "1 claim: 1 holds"
    assert count_verdicts([{"verdict": UNDECIDED}] * 11) == "11 claims: 11 not decided"


def test_a_number_has_three_digits_or_is_whole():
    said = [number(x) for x in (99.02, 99.0, 0.25, 999.6, 471234.4, 1e-16, -3.14159, 0.0, float("inf"))]
    assert said == ["99.0", "99", "0.250", "1,000", "471,234", "1.00e-16", "-3.14", "0", "inf"]
    assert number(12.75, "ms") == "12.8 ms" and [screen.duration(s) for s in (44.6, 725)] == ["45 s", "12 min 5 s"]


# ---- one claim whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_a_claim_whole_says_everything_within_the_width(columns, report):
    row = report_rows()[3]
    text = screen.claim_whole(row, Settings(3), report, columns, UNICODE)
    # a path has no place to break
    assert max(len(line) for line in text.splitlines() if "figure" not in line and str(report) not in line) <= columns
    words = " ".join(text.split())
    for field in ("statement", "where", "key", "paper", "rule", "measured", "spread"):
        assert " ".join(row[field].split()) in words, field
    assert "strings ✓ holds" in words and "text ✗ does not hold" in words and "exact ✓ holds" in words
    assert (
        "verdict holds on strings and what is exact, does not hold on text strings" in words
        and "run full, 3 bases (of " in words
    )
    table = [" ".join(line.split()) for line in text.split("\n\n")[-2].splitlines()]
    assert "number world mean interval n" in table and "a step time 12.8 ms 12.6 to 13 3" in table
    assert any(line.startswith("✓ share of") and line.endswith("99.0 % 98.5 to 99.5 3") for line in table)
    assert any(line.endswith("471,234 bytes 1") for line in table)
    quick = screen.claim_whole(row, Settings(1, quick=True), report, columns, UNICODE)
    assert "rule  in the full run, holds if" in quick and "run  quick, 1 base (of " in quick


def test_show_prints_the_claim_from_the_report_in_a_folder(report, capsys):
    assert main(["show", "rank", "--out", str(report)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("The statement of rank") and "r = 8 answers 99 % of full's" in out and "rank.png" in out


def test_show_on_a_console_that_has_only_ascii(report, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["show", "rank", "--out", str(report)]) == 0
    assert "   strings  y holds" in console.buffer.getvalue().decode("ascii")


def test_show_refuses_in_a_sentence(report, tmp_path, capsys):
    def refused(*arguments):
        capsys.readouterr()
        assert main(["show", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        return said.err

    path = report / "claims.json"
    assert "There is no report in" in refused("rank", "--out", str(tmp_path / "none"))
    assert "has no claim 'ranks'; it has: zero_init, alpha_learning_rate," in refused("ranks", "--out", str(report))
    good = json.loads(path.read_text(encoding="utf-8"))
    row = good["claims"][0]
    measurement = row["measurements"][0]
    for damaged in (
        {**good, "schema": 1},
        {**good, "claims": {}},
        {**good, "claims": [{**row, "verdicts": None}]},
        {**good, "claims": [{**row, "verdicts": {"text": 1}}]},
        {**good, "claims": [{**row, "verdicts": {"text": []}}]},
        {**good, "claims": [{**row, "verdict": "illustration, no verdict"}]},
        {**good, "seeds": None},
        {**good, "claims": [{name: row[name] for name in row if name != "key"}]},
        {**good, "claims": [{**row, "measurements": [{**measurement, "value": "1"}]}]},
        {**good, "claims": [None]},
    ):
        path.write_text(json.dumps(damaged), encoding="utf-8")
        assert "is no report of this version of minilora: make it anew" in refused("rank", "--out", str(report))
    path.write_text("{", encoding="utf-8")
    assert "claims.json" in refused("rank", "--out", str(report))
    path.unlink()
    path.mkdir()
    assert "claims.json cannot be read" in refused("rank", "--out", str(report))


def test_what_was_written_is_read_back(report):
    assert read_report(report) == (report_rows(), Settings(3))


# ---- words that are taken for known ------------------------------------------------------------------


def test_the_terms_that_a_claim_uses_are_explained_and_no_other(capsys):
    rows, _ = read_report(Path(__file__).parents[2] / "figures")
    explained = {row["id"]: [said.split(":")[0] for said in terms(row)] for row in rows}
    assert explained["rank"] == ["planted", "Eckart–Young floor", "gain"] and explained["latency"] == []
    assert {term for said in explained.values() for term in said} == TERMS.keys()
    assert main(["show", "rank", "--out", str(Path(__file__).parents[2] / "figures")]) == 0
    assert "\n     terms  planted: a problem made so that its best answer is known\n" in capsys.readouterr().out
