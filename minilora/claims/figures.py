"""One style for every figure. The only file that imports matplotlib, and only when a figure is made."""

from __future__ import annotations

import io
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..interop.files import write_atomically
from .measures import interval, margin, mean

# Okabe and Ito's colours, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GRAY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
WIDTH = 7.5  # inches: 830 pixels of a README, where 10 points are 15 pixels
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def save_figure(path: str | Path, draw: Callable[[Any], None], width: float = WIDTH, height: float = 3.6) -> None:
    """Make a figure of `width` by `height` inches, let `draw(figure)` fill it, and write it as PNG.

    Nobody's MPLBACKEND or matplotlibrc changes it: Agg draws, with matplotlib's default settings and this style.
    """
    write_atomically(path, partial(_save, draw, width, height))


def check_figures() -> None:
    """Raise `ValueError` where no figure can be drawn here: to ask before the runs that figures show."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [1, 2], label="α")
        axes.legend(title="0")

    try:
        _save(draw, 2, 1, io.BytesIO())
    except Exception as error:  # of whatever kind: fonts, libraries that do not fit each other
        raise ValueError(f"Figures cannot be drawn here: matplotlib says {str(error)!r}.") from error


def _save(draw: Callable[[Any], None], width: float, height: float, file: Any) -> None:
    _import_matplotlib()
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(file, format="png", dpi=220, metadata={"Software": None})


def _import_matplotlib() -> None:
    """MPLBACKEND, inherited from a notebook, may name what this matplotlib does not know: its import would fail.
    Whoever draws on a screen later gets the backend that it names, if there is one."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def panels(figure: Any, count: int, height: float = 3.6, ratios: Any = None) -> list[Any]:
    """One panel or two beside each other."""
    figure.set_size_inches(WIDTH, height)
    return list(figure.subplots(1, count, squeeze=False, width_ratios=ratios)[0])


def finding(figure: Any, said: str, n: int = 1) -> None:
    """What the figure shows, as its title in plain words; and below it, for several bases, what a band or a bar is."""
    whole = said.replace(" %", "\u00a0%")  # a number and its unit stay on one line
    figure.suptitle(textwrap.fill(whole, 80), x=0.01, ha="left", fontsize=11, fontweight="bold")
    if n > 1:
        note = f"Bands and bars: the 90 % interval of the mean over {n} bases."
        figure.supxlabel(note, x=0.99, ha="right", fontsize=8, color=GRAY)


def ticks(axes: Any, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    """At these numbers and nowhere else, written as numbers on a logarithmic axis too."""
    if len(x):
        axes.set_xticks(x, [f"{number:g}" for number in x])
    if len(y):
        axes.set_yticks(y, [f"{number:g}" for number in y])
    axes.minorticks_off()


def band(axes: Any, x: Any, values: Any, color: str, **style: Any) -> np.ndarray:
    """The mean over the rows of `values` (bases, points) as a line, the 90 % interval of it as a band; the mean."""
    values = np.asarray(values)
    middle = values.mean(axis=0)
    axes.plot(x, middle, color=color, **style)
    if len(values) > 1:
        low, high = np.array([interval(column) for column in values.T.tolist()]).T
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    return middle


def label_lines(axes: Any, labels: Sequence[tuple[float, float, str, str]], gap: float = 12.0) -> None:
    """Write at the right of each point (x, y, words, colour) what its line is, moved apart to `gap` points.

    To be called once the limits and scales of the axes are set.
    """
    axes.figure.canvas.draw()  # the layout decides where a point lies
    points = 72 / axes.figure.dpi
    heights = [float(axes.transData.transform((x, y))[1]) * points for x, y, _, _ in labels]
    groups: list[list[int]] = []  # of labels that lie apart by `gap`, around the mean of where they belong
    for place in sorted(range(len(labels)), key=lambda place: heights[place]):
        groups.append([place])
        while len(groups) > 1 and _top(groups[-2], heights, gap) > -_top(groups[-1], [-h for h in heights], gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    for group in groups:
        middle = mean([heights[place] for place in group])
        for number, place in enumerate(group):
            x, y, words, color = labels[place]
            aside = (5, middle + (number - (len(group) - 1) / 2) * gap - heights[place])
            written = axes.annotate(
                words, (x, y), xytext=aside, textcoords="offset points", va="center", color=color, fontsize=9
            )
            written.set_annotation_clip(False)
            written.set_in_layout(False)


def _top(group: list[int], heights: list[float], gap: float) -> float:
    """The upper edge of labels that lie apart by `gap`."""
    return mean([heights[place] for place in group]) + len(group) * gap / 2


def point(axes: Any, x: float, values: Any, color: str, marker: str = "o", **style: Any) -> None:
    """One mean with its 90 % interval as a bar."""
    values = list(values)
    off = margin(values) if len(values) > 1 else 0.0
    axes.errorbar([x], [mean(values)], yerr=[off], color=color, marker=marker, capsize=2, linewidth=1.2, **style)


def dots(axes: Any, names: Sequence[str], values: Sequence[Any], colors: Sequence[str]) -> None:
    """A row for each name, the first at the top: the mean as a dot, its 90 % interval as a bar, bases as specks."""
    rows = range(len(names))[::-1]
    for row, of_row, color in zip(rows, values, colors, strict=True):
        off = margin(of_row) if len(of_row) > 1 else 0.0
        axes.plot(of_row, [row] * len(of_row), ".", color=color, alpha=0.35, markersize=4)
        axes.errorbar([mean(of_row)], [row], xerr=[off], color=color, marker="o", capsize=2, linewidth=1.4)
    axes.set_yticks(list(rows), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)
