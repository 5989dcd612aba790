"""A figure is the same picture whatever a notebook, a matplotlibrc or an environment says."""

import os
import subprocess
import sys

import pytest

from minilora.claims import figures

DRAW = """
import sys
from minilora.claims.figures import BLUE, band, check_figures, save_figure
check_figures()
def draw(figure):
    axes = figure.subplots()
    band(axes, [1, 2, 3], [[1.5, -2, 3], [2, 3, 4]], BLUE, label="α/r")
    axes.set(title="ΔW", xlabel="$W_0 x$")
    axes.legend()
save_figure(sys.argv[1], draw)
"""
ODD = """\
text.usetex: True
font.family: nothing
axes.facecolor: red
axes.unicode_minus: False
lines.linewidth: 30
figure.dpi: 33
figure.autolayout: True
savefig.dpi: 17
savefig.bbox: tight
savefig.transparent: True
image.cmap: jet
backend: TkAgg
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """drawn(variable=value, ...) -> the picture's bytes, drawn by a process with this in its environment alone."""

    def draw(code=DRAW, **environment):
        folder = tmp_path_factory.mktemp("figure")
        (folder / "matplotlibrc").write_text(ODD if environment.get("MATPLOTLIBRC") == "odd" else "")
        environment["MATPLOTLIBRC"] = str(folder)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "MATPLOTLIB"))}
        command = [sys.executable, "-W", "error", "-c", code, str(folder / "figure.png")]
        subprocess.run(command, env={**clean, **environment}, check=True, timeout=120, stderr=subprocess.DEVNULL)
        return (folder / "figure.png").read_bytes()

    return draw


@pytest.fixture(scope="module")
def usual(drawn):
    picture = drawn()
    assert picture[:4] == b"\x89PNG"
    return picture


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},  # what Jupyter's kernel says
        {"MPLBACKEND": "module://nowhere.backend"},
        {"MPLBACKEND": "of a later matplotlib"},
        {"MPLBACKEND": "TkAgg"},
        {"MATPLOTLIBRC": "odd"},
        {"MPLCONFIGDIR": os.path.join(__file__, "no folder")},
    ],
    ids=str,
)
def test_no_environment_changes_a_figure(environment, drawn, usual):
    assert drawn(**environment) == usual


def test_nor_does_a_backend_or_a_style_that_the_program_chose_and_both_stay(drawn, usual):
    before = (
        "import matplotlib; matplotlib.use('svg'); matplotlib.rcParams.update({'font.size': 30, 'text.usetex': True})"
    )
    after = "assert matplotlib.get_backend() == 'svg' and matplotlib.rcParams['font.size'] == 30"
    assert drawn(f"{before}\n{DRAW}\n{after}") == usual


def test_a_backend_that_a_notebook_asked_for_is_there_when_it_plots(drawn):
    after = "import os, matplotlib; assert matplotlib.rcParams['backend'] == 'svg' == os.environ['MPLBACKEND']"
    drawn(f"{DRAW}\n{after}", MPLBACKEND="svg")


def test_where_nothing_can_be_drawn_the_reason_is_said(monkeypatch):
    def broken(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(figures, "_save", broken)
    with pytest.raises(ValueError, match="Figures cannot be drawn here: matplotlib says 'no fonts'"):
        figures.check_figures()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="Figures cannot be drawn here"):
        figures.check_figures()
