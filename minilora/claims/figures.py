"""One style for every figure. The only file that imports matplotlib, and only when a figure is made."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..interop.files import write_atomically

# Okabe and Ito's colours, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GRAY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666",
)  # fmt: skip
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def save_figure(path: str | Path, draw: Callable[[Any], None], width: float = 10.0, height: float = 4.0) -> None:
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
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})


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


def panels(figure: Any, count: int, width: float, height: float, ratios: Any = None) -> list[Any]:
    """So many panels beside each other, on a figure of that size."""
    figure.set_size_inches(width, height)
    return list(figure.subplots(1, count, squeeze=False, width_ratios=ratios)[0])


def ticks(axes: Any, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    """At these numbers and nowhere else, written as numbers on a logarithmic axis too."""
    if len(x):
        axes.set_xticks(x, [f"{number:g}" for number in x])
    if len(y):
        axes.set_yticks(y, [f"{number:g}" for number in y])
    axes.minorticks_off()


def band(axes: Any, x: Any, values: Any, color: str, label: str, **style: Any) -> None:
    """The mean over the rows of `values` (seeds, points) as a line, their range as a band."""
    values = np.asarray(values)
    axes.plot(x, values.mean(axis=0), color=color, label=label, **style)
    if len(values) > 1:
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.18, linewidth=0)


def grouped_points(axes: Any, groups: list[str], series: dict[str, list[list[float]]], colors: tuple[str, ...]) -> None:
    """For each group one bar a series, the mean of its values, with every value (a base) as a dot on it."""
    width = 0.8 / len(series)
    for number, ((label, values), color) in enumerate(zip(series.items(), colors, strict=False)):
        x = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        axes.bar(x, [np.mean(v) for v in values], 0.9 * width, color=color, alpha=0.55, label=label)
        for place, points in zip(x, values, strict=True):
            axes.plot([place] * len(points), points, ".", color=color, markersize=4)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.grid(axis="x", visible=False)


def point(axes: Any, x: float, values: Any, color: str, marker: str, label: str | None = None) -> None:
    """One mean with the range of its values as a bar."""
    center = float(np.mean(values))
    spread = [[center - min(values)], [max(values) - center]]
    axes.errorbar([x], [center], yerr=spread, color=color, marker=marker, label=label, capsize=2, linewidth=1.2)


def quartiles(axes: Any, x: float, values: tuple[float, float, float], color: str, **style: Any) -> None:
    """A median with the quartiles beside it as a bar."""
    low, middle, high = values
    axes.errorbar([x], [middle], yerr=[[middle - low], [high - middle]], fmt="o", color=color, **style)
