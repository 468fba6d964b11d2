"""Δ-learning from DFT: corrects ΔE_H on two-dimensional sheets, of a network trained on a potential and of the potential itself.

Potentials trained on bulk crystals bind H too strongly to inert basal planes, by about 1 eV on MoS2 or graphene, while they rank
sheets well. Gaussian-process regression (Rasmussen and Williams 2006, chapter 2; a linear term and a smooth one) on some tens of
DFT points takes most of that away. Its descriptors are few and physical: the prediction itself; the group of the element that H
binds to, which counts its valences; and the mean Pauling electronegativity and group of the other elements, which tell a closed
shell from a metal with a half-filled band. Every figure quoted for it is from hosts, or whole families, left out of the fit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect

import config
from geo_utils import adsorbed_hydrogen, tag_last_hydrogen

log = logging.getLogger("her2d")

MIN_POINTS = 12
FOLDS = 10  # of hosts left out together
# ½D_e(H2) is 2.27 eV in PBE: an H that the sheet does not bind at all has this ΔE_H. Far above it the potential's geometry, on
# which the DFT energy was computed, is one that DFT would not keep (a sheet that the potential let collapse around H), and the
# value says nothing about adsorption.
UNBOUND_EV = 2.27 + 0.5


@dataclass(frozen=True)
class TruthPoint:
    """One DFT value. atoms: sheet with one H, tagged. delta_e: eV. host: reduced formula, the unit left out of fits.

    potential_delta_e: ΔE_H of SevenNet-0, which made the geometry, NaN where the database does not say. clean: the sheet without H.
    family: the prototype of the sheet.
    """

    name: str
    host: str
    site: str
    atoms: Atoms
    delta_e: float
    potential_delta_e: float
    clean: Atoms | None = None
    family: str = ""


def read_truth(path: str | Path) -> list[TruthPoint]:
    """DFT points of an ASE database: rows ``kind=slab_H`` with H as the last atom and ``dE_dft`` in eV, at most UNBOUND_EV.

    Raises StageError when the file is missing, or a row holds no H at its end.
    """
    path = Path(path)
    if not path.is_file():
        raise config.StageError(f"no DFT reference points at {config.relative_name(path)}")
    points, unbound = [], []
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
        if row.dE_dft > UNBOUND_EV:
            unbound.append(f"{name} {site}")
            continue
        family = str(row.get("family", host))
        points.append(TruthPoint(name, host, site, atoms, float(row.dE_dft), potential, clean.get(name), family))
    if unbound:
        log.info("%s: left out, H unbound in DFT at the potential's geometry: %s", config.relative_name(path), ", ".join(unbound))
    return points


def descriptors(atoms: Atoms, delta_e: float) -> np.ndarray:
    """(4,): ΔE_H predicted (eV); group of the element that H binds to; mean electronegativity and mean group of the other atoms.

    Of a sheet of one element, the element itself stands for the others. NaN for elements without an electronegativity.
    """
    hydrogen = adsorbed_hydrogen(atoms)
    others = [i for i in range(len(atoms)) if i != hydrogen]
    nearest = others[int(np.argmin(atoms.get_distances(hydrogen, others, mic=True)))]
    host = atoms.symbols[nearest]
    rest = np.array([_element(atoms.symbols[i]) for i in others if atoms.symbols[i] != host] or [_element(host)])
    return np.array([delta_e, _element(host)[1], *rest.mean(0)])


@cache
def _element(symbol: str) -> tuple[float, float]:
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns where it has no electronegativity; NaN says so
        return float(Element(symbol).X), float(Element(symbol).group)


@dataclass(frozen=True)
class DftCorrection:
    """Gaussian process ΔE_H(DFT) = f(descriptors). features: (n, 4), truth: (n,) eV, theta: logarithms of the hyperparameters.

    rmse_ev: error on hosts left out of the fit. scale: factor that makes 68 % of these errors fall within the process's own σ.
    """

    features: tuple[tuple[float, ...], ...]
    truth: tuple[float, ...]
    theta: tuple[float, ...]
    rmse_ev: float
    scale: float

    @property
    def n(self) -> int:
        """DFT points."""
        return len(self.truth)

    @classmethod
    def fit(cls, features: np.ndarray, truth: np.ndarray, hosts: Sequence[str]) -> DftCorrection:
        """features: (n, 4), truth: (n,) eV, hosts: the group of each point. Raises ValueError for fewer than MIN_POINTS points."""
        if len(truth) < MIN_POINTS:
            raise ValueError(f"{len(truth)} DFT points are too few for a correction, {MIN_POINTS} are needed")
        left_out, sigma = leave_out(features, truth, hosts)
        error = left_out - truth
        theta = _Process(features, truth).theta
        scale = float(np.quantile(np.abs(error) / sigma, 0.6827))
        as_tuples = tuple(tuple(float(v) for v in row) for row in features)
        return cls(as_tuples, tuple(float(v) for v in truth), theta, float(np.sqrt(np.mean(error**2))), scale)

    @cached_property
    def _process(self) -> _Process:
        return _Process(np.array(self.features), np.array(self.truth), self.theta)

    def apply(self, atoms: Sequence[Atoms], delta_e: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corrected ΔE_H (n,) eV and its standard error: ``std`` through the slope, and the process's own, in quadrature."""
        if not len(delta_e):
            return delta_e, std
        features = np.array([descriptors(a, e) for a, e in zip(atoms, delta_e, strict=True)])
        value, sigma = np.full(len(features), np.nan), np.full(len(features), np.nan)
        known = np.isfinite(features).all(1)
        if known.any():
            value[known], sigma[known] = self._process.predict(features[known])
            step = np.zeros_like(features[known])
            step[:, 0] = 0.05
            above, below = (self._process.predict(features[known] + side * step)[0] for side in (1, -1))
            slope = (above - below) / (2 * step[:, 0])
            sigma[known] = np.hypot(slope * np.asarray(std)[known], self.scale * sigma[known])
        return value, sigma


class _Process:
    """scikit-learn's Gaussian process on standardised descriptors; theta: given hyperparameters instead of the likeliest ones."""

    def __init__(self, features: np.ndarray, truth: np.ndarray, theta: Sequence[float] | None = None) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

        self.mean, self.spread = features.mean(0), features.std(0) + 1e-9
        kernel = (
            ConstantKernel(1.0) * DotProduct(1.0)
            + ConstantKernel(0.3) * RBF(np.full(features.shape[1], 2.0), (0.3, 100.0))
            + WhiteKernel(0.05, (1e-4, 1.0))
        )
        if theta is not None:
            kernel = kernel.clone_with_theta(np.array(theta))
        self.regressor = GaussianProcessRegressor(
            kernel, optimizer=None if theta is not None else "fmin_l_bfgs_b", normalize_y=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a hyperparameter at its bound: a descriptor that is not needed
            self.regressor.fit((features - self.mean) / self.spread, truth)

    @property
    def theta(self) -> tuple[float, ...]:
        return tuple(float(v) for v in self.regressor.kernel_.theta)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) eV, the noise of the points included."""
        return self.regressor.predict((features - self.mean) / self.spread, return_std=True)


def leave_out(features: np.ndarray, truth: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, σ), (n,) eV: every point by a fit without any point of its group, hyperparameters included.

    Up to FOLDS groups at a time are left out together.
    """
    names = sorted(set(groups))
    fold_of = {name: k % FOLDS for k, name in enumerate(names)}
    folds = np.array([fold_of[group] for group in groups])
    predicted, sigma = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    for fold in sorted(set(folds.tolist())):
        held = folds == fold
        if (~held).sum() >= 2:
            predicted[held], sigma[held] = _Process(features[~held], truth[~held]).predict(features[held])
    return predicted, sigma


def fit_correction(predict_raw: Any, truth_path: str | Path) -> tuple[DftCorrection, dict[str, Any]]:
    """Correction of a network on the DFT points, and what it does to them when their host is left out.

    predict_raw: tagged Atoms -> (ΔE_H, std) without correction.
    """
    points = read_truth(truth_path)
    raw, _ = predict_raw([point.atoms for point in points])
    features, truth, hosts = _fit_arguments(points, raw)
    correction = DftCorrection.fit(features, truth, hosts)
    left_out, _ = leave_out(features, truth, hosts)
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


def left_out_predictions(points: Sequence[TruthPoint], raw: np.ndarray, by: str = "host") -> tuple[np.ndarray, np.ndarray]:
    """(prediction, σ), (n,) eV: ``raw`` (n,) eV of every point corrected by a fit without its host (by: "host" or "family").

    NaN where ``raw`` is, or where too few points are left to fit.
    """
    known = np.flatnonzero(np.isfinite(raw))
    predicted, sigma = np.full(len(raw), np.nan), np.full(len(raw), np.nan)
    if len(known) >= MIN_POINTS:
        features, truth, _ = _fit_arguments([points[k] for k in known], raw[known])
        predicted[known], sigma[known] = leave_out(features, truth, [getattr(points[k], by) for k in known])
    return predicted, sigma


def _fit_arguments(points: Sequence[TruthPoint], raw: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    features = np.array([descriptors(p.atoms, value) for p, value in zip(points, raw, strict=True)]).reshape(len(points), -1)
    return features, np.array([p.delta_e for p in points]), [p.host for p in points]
