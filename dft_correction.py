"""Δ-learning from DFT: corrects ΔE_H on two-dimensional sheets, of a network trained on a potential and of the potential itself.

Potentials trained on bulk crystals bind H too strongly to inert basal planes, by about 1 eV on MoS2 or graphene, while they rank
sheets well. A ridge regression on a handful of DFT points takes most of that away. Its descriptors are few and physical: the
prediction itself, and the mean Pauling electronegativity of the atoms that H does not bind to, which tells an ionic or covalent
host, whose surface atoms have no free valence, from a metallic one. Every figure quoted for it is from hosts left out of the fit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect

import config
from geo_utils import adsorbed_hydrogen, tag_last_hydrogen

log = logging.getLogger("her2d")

RIDGE = 0.1  # in units of the standardised descriptors
MIN_POINTS = 12


@dataclass(frozen=True)
class TruthPoint:
    """One DFT value. atoms: sheet with one H, tagged. delta_e: eV. host: reduced formula, the unit left out of fits.

    potential_delta_e: ΔE_H of SevenNet-0, which made the geometry, NaN where the database does not say. clean: the sheet without H.
    """

    name: str
    host: str
    site: str
    atoms: Atoms
    delta_e: float
    potential_delta_e: float
    clean: Atoms | None = None


def read_truth(path: str | Path) -> list[TruthPoint]:
    """DFT points of an ASE database: rows ``kind=slab_H`` with H as the last atom and ``dE_dft`` in eV.

    Raises StageError when the file is missing, or a row holds no H at its end.
    """
    path = Path(path)
    if not path.is_file():
        raise config.StageError(f"no DFT reference points at {config.relative_name(path)}")
    points = []
    clean = {str(row.name): row.toatoms() for row in connect(path).select(kind="clean")}
    for row in connect(path).select(kind="slab_H"):
        if "dE_dft" not in row:
            continue
        atoms = row.toatoms()
        try:
            tag_last_hydrogen(atoms)
        except ValueError as error:
            raise config.StageError(f"{config.relative_name(path)}, row {row.id}: {error}") from error
        atoms.pbc = (True, True, False)
        host = atoms[:-1].symbols.formula.reduce()[0].format("hill")
        potential = float(row.get("dE_7net0", np.nan))
        name, site = str(row.name), str(row.get("site", ""))
        points.append(TruthPoint(name, host, site, atoms, float(row.dE_dft), potential, clean.get(name)))
    return points


def descriptors(atoms: Atoms, delta_e: float) -> np.ndarray:
    """(2,) ΔE_H predicted (eV), and the mean electronegativity of the sheet's atoms of other elements than the one H binds to."""
    from pymatgen.core import Element

    hydrogen = adsorbed_hydrogen(atoms)
    others = [i for i in range(len(atoms)) if i != hydrogen]
    nearest = others[int(np.argmin(atoms.get_distances(hydrogen, others, mic=True)))]
    host = atoms.symbols[nearest]
    rest = [atoms.symbols[i] for i in others if atoms.symbols[i] != host] or [host]
    return np.array([delta_e, np.mean([Element(symbol).X for symbol in rest])])


@dataclass(frozen=True)
class DftCorrection:
    """ΔE_H(DFT) ≈ intercept + weights · descriptors. rmse_ev: error on hosts left out of the fit. n: DFT points."""

    intercept: float
    weights: tuple[float, ...]
    rmse_ev: float
    n: int

    @classmethod
    def fit(cls, features: np.ndarray, truth: np.ndarray, hosts: Sequence[str]) -> DftCorrection:
        """features: (n, 2), truth: (n,) eV, hosts: the group of each point. Raises ValueError for fewer than MIN_POINTS points."""
        if len(truth) < MIN_POINTS:
            raise ValueError(f"{len(truth)} DFT points are too few for a correction, {MIN_POINTS} are needed")
        left_out = leave_hosts_out(features, truth, hosts)
        intercept, weights = _ridge(features, truth)
        rmse = float(np.sqrt(np.mean((left_out - truth) ** 2)))
        return cls(float(intercept), tuple(float(w) for w in weights), rmse, len(truth))

    def apply(self, atoms: Sequence[Atoms], delta_e: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrected ΔE_H (n,) eV and its standard error: the network's times the slope, and the correction's, in quadrature."""
        if not len(delta_e):
            return delta_e, std
        features = np.array([descriptors(a, e) for a, e in zip(atoms, delta_e, strict=True)])
        return self.intercept + features @ np.array(self.weights), np.hypot(self.weights[0] * std, self.rmse_ev)


def _ridge(features: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray]:
    mean, scale = features.mean(0), features.std(0) + 1e-9
    standard = (features - mean) / scale
    weights = (
        np.linalg.solve(standard.T @ standard + RIDGE * np.eye(features.shape[1]), standard.T @ (truth - truth.mean())) / scale
    )
    return float(truth.mean() - mean @ weights), weights


def leave_hosts_out(features: np.ndarray, truth: np.ndarray, hosts: Sequence[str]) -> np.ndarray:
    """(n,) eV: every point predicted by a fit without any point of its host."""
    groups = np.array(hosts)
    predicted = np.full(len(truth), np.nan)
    for host in sorted(set(hosts)):
        held = groups == host
        intercept, weights = _ridge(features[~held], truth[~held])
        predicted[held] = intercept + features[held] @ weights
    return predicted


def fit_correction(predict_raw: Any, truth_path: str | Path) -> tuple[DftCorrection, dict[str, Any]]:
    """Correction of a network on the DFT points, and what it does to them when their host is left out.

    predict_raw: tagged Atoms -> (ΔE_H, std) without correction.
    """
    points = read_truth(truth_path)
    raw, _ = predict_raw([point.atoms for point in points])
    features, truth, hosts = _fit_arguments(points, raw)
    correction = DftCorrection.fit(features, truth, hosts)
    left_out = leave_hosts_out(features, truth, hosts)
    summary = {
        "n": len(points),
        "raw_mae_ev": float(np.abs(raw - truth).mean()),
        "left_out_mae_ev": float(np.abs(left_out - truth).mean()),
        "left_out_rmse_ev": correction.rmse_ev,
    }
    return correction, summary


GEOMETRY_POTENTIAL = "sevennet-0"  # whose geometries, and whose ΔE_H, the DFT database holds


def potential_delta_e(points: Sequence[TruthPoint], potential: Any) -> np.ndarray:
    """(n,) eV: a potential's ΔE_H at the DFT geometries, E(sheet+H) − E(sheet) − ½E(H2); NaN where the clean sheet is not known."""
    from potentials import h2_energy

    if potential.name == GEOMETRY_POTENTIAL:
        return np.array([point.potential_delta_e for point in points])

    def energy(atoms: Atoms) -> float:
        work = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
        work.calc = potential.calculator
        return float(work.get_potential_energy())

    sheets = {point.name: energy(point.clean) for point in points if point.clean is not None}
    half_h2 = 0.5 * h2_energy(potential)
    return np.array([energy(p.atoms) - sheets[p.name] - half_h2 if p.name in sheets else np.nan for p in points])


def fit_potential_correction(potential: Any, truth_path: str | Path) -> DftCorrection | None:
    """The correction of a potential's own ΔE_H; None, with a line that says why, where there are too few DFT points."""
    points = read_truth(truth_path)
    raw = potential_delta_e(points, potential)
    known = np.isfinite(raw)
    points, raw = [p for p, is_known in zip(points, known, strict=True) if is_known], raw[known]
    try:
        return DftCorrection.fit(*_fit_arguments(points, raw))
    except ValueError as error:
        log.warning("no correction of %s's ΔE_H: %s", potential.name, error)
        return None


def left_out_predictions(points: Sequence[TruthPoint], raw: np.ndarray) -> np.ndarray:
    """(n,) eV: ``raw`` (n,) eV of every point corrected by a fit without its host; NaN where ``raw`` is."""
    known = np.flatnonzero(np.isfinite(raw))
    out = np.full(len(raw), np.nan)
    if len(known) >= MIN_POINTS:
        out[known] = leave_hosts_out(*_fit_arguments([points[k] for k in known], raw[known]))
    return out


def _fit_arguments(points: Sequence[TruthPoint], raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    features = np.array([descriptors(p.atoms, value) for p, value in zip(points, raw, strict=True)]).reshape(len(points), -1)
    return features, np.array([p.delta_e for p in points]), [p.host for p in points]
