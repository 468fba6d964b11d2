"""Draws every figure in one style and saves it as PNG and PDF. matplotlib is imported by the first figure, not with this module."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.files import atomic_path

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text in the PDF
    # Labels of sets and formulas come from files; only fixed texts are parsed (``parse_math=True``).
    "text.parse_math": False,
}


@contextmanager
def figure(path: str | os.PathLike, **arguments: Any) -> Iterator[tuple[Any, Any]]:
    """Open a figure in the common style, and ``save`` it when the block ends.

    The backend is left as it is: that of a notebook stays its own.

    Args:
        path: of the PNG.
        arguments: ``figsize`` (inches), and those of matplotlib's ``Figure.subplots``.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=arguments.pop("figsize", None), layout="constrained")
        yield fig, fig.subplots(**arguments)
        save(fig, path)


def save(fig: Any, path: str | os.PathLike) -> None:
    """Write a figure atomically as PNG and, beside it under the same name, as PDF. path: of the PNG."""
    with atomic_path(path) as temporary:
        fig.savefig(temporary, format="png")
    fig.set_layout_engine("none")  # both formats take the places that the first has found
    with atomic_path(Path(path).with_suffix(".pdf")) as temporary:
        # Without a date the same data give the same file.
        fig.savefig(temporary, format="pdf", metadata={"CreationDate": None})


def logarithmic(axis: Any) -> None:
    """Make the vertical axis logarithmic with plain numbers; matplotlib's own labels need mathtext, which is off here."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
