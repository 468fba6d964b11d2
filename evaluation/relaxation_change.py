"""What relaxing by DFT does to ΔG_H: the minima of DFT beside its single points at the same sites.

The judges are fitted to single points, at geometries of potentials; minima decide who is a hit. Sites that lie higher come down
further, because the potentials keep H away from where DFT wants it, so the change is a straight line in the single point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import linregress

from energetics.adsorption_energy import free_energy
from energetics.dft_points import TruthPoint

FEWEST_RELAXED = 5  # sites from which a mean change is taken
FEWEST_FOR_LINE = 10  # sites from which a line is taken

Site = tuple[str, str]  # names of sheet and site


@dataclass(frozen=True)
class RelaxationChange:
    """How far ΔG_H in minima of DFT lies from its single points.

    at: (name, site) -> (ΔG_H by a single point, in the minimum), eV.
    """

    at: Mapping[Site, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, singles: Mapping[Site, float], minima: Iterable[TruthPoint], her_correction_ev: float) -> RelaxationChange:
        """Return the change at the sites of minima that have a single point.

        Args:
            singles: (name, site) -> ΔG_H, eV.
            minima: points of DFT at rest.
            her_correction_ev: ΔG_H − ΔE_H.
        """
        found = {(point.name, point.site): free_energy(point.delta_e, her_correction_ev) for point in minima}
        return cls({site: (singles[site], value) for site, value in found.items() if site in singles})

    def with_others(self, other: RelaxationChange) -> RelaxationChange:
        """Return the change at these sites and other ones together; a site of both is there once, as it is here."""
        return RelaxationChange({**other.at, **self.at})

    @property
    def n(self) -> int:
        """Number of sites."""
        return len(self.at)

    @property
    def is_known(self) -> bool:
        """Return whether there are enough sites for a mean."""
        return self.n >= FEWEST_RELAXED

    @cached_property
    def singles_ev(self) -> np.ndarray:
        """ΔG_H by single points, (n,)."""
        return np.array([single for single, _ in self.at.values()])

    @cached_property
    def changes_ev(self) -> np.ndarray:
        """What the minima add to these, (n,)."""
        return np.array([minimum - single for single, minimum in self.at.values()])

    @cached_property
    def line(self) -> tuple[float, float]:
        """Change at a ΔG_H of zero (eV), and its slope; flat where the sites are too few for more."""
        if self.n < FEWEST_FOR_LINE or np.ptp(self.singles_ev) == 0:
            return float(self.changes_ev.mean()), 0.0
        found = linregress(self.singles_ev, self.changes_ev)
        return float(found.intercept), float(found.slope)

    @cached_property
    def scatter_ev(self) -> float:
        """Standard deviation of the changes around the line."""
        left = self.changes_ev - self.expected(self.singles_ev)
        return float(np.sqrt(np.sum(left**2) / (self.n - (2 if self.line[1] else 1))))

    def expected(self, single_ev: np.ndarray) -> np.ndarray:
        """Return the change to expect from values of single points, eV; beyond those that are known it stays that at their end."""
        at_zero, slope = self.line
        return at_zero + slope * np.clip(single_ev, self.singles_ev.min(), self.singles_ev.max())

    def as_dict(self) -> dict[str, Any]:
        """Return what a report says of it; only the number of sites where these are too few."""
        if not self.is_known:
            return {"n": self.n}
        changes = self.changes_ev
        return {
            "n": self.n,
            "mean_ev": float(changes.mean()),
            "std_ev": float(changes.std(ddof=1)),
            "lowest_ev": float(changes.min()),
            "highest_ev": float(changes.max()),
            "at_zero_ev": self.line[0],
            "slope": self.line[1],
            "scatter_ev": self.scatter_ev,
        }


UNKNOWN_CHANGE = RelaxationChange()
