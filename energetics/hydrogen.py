"""The HER judge: ΔE_H and ΔG_H of a sheet from a trained DimeNet++ ensemble, with calibrated uncertainty.

The network sees the sheet WITH its H atom, once per symmetry-distinct site, and refuses a bare sheet. Only ``legacy_bare_output``
takes one, to repeat an earlier public baseline for comparison. ΔG_H is ``adsorption_energy.free_energy`` of ΔE_H.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from energetics.adsorption_energy import free_energy
from energetics.dft_correction import DftCorrection
from energetics.site_cache import SiteStore, place_sites
from energetics.sites import SheetHER, add_hydrogen, adsorbed_hydrogen
from models import DIMENET_KIND, DimeNetPlusPlus
from networks.checkpoints import CheckpointError, load_checkpoint
from networks.dimenet_layers import DimeNetPlusPlusConfig
from pipeline.files import file_sha256, relative_name

HINT = "run pretrain_dimenet.py, or set dimenet.checkpoint=weights/dimenet.pth"
SHARE_WITHIN_ONE_STD = 0.6827


class HydrogenSettings(Protocol):
    """The settings of section ``dataset`` that this module reads."""

    h_image_distance_angstrom: float
    her_correction_ev: float
    label_batch_size: int


@dataclass(frozen=True)
class Calibration:
    """Turns the spread of an ensemble into a standard error: σ = scale · sqrt(spread² + floor²), eV.

    The spread of a few members is itself uncertain and now and then nearly zero by chance. ``floor``, the median spread on the
    validation records, keeps σ from being so small there. ``scale`` makes 68.27 % of the validation errors fall within ±σ.
    """

    scale: float
    floor: float

    @classmethod
    def fit(cls, spread: np.ndarray, error: np.ndarray) -> Calibration:
        """Fit scale and floor. spread, error: (n,) eV on held-out records."""
        floor = float(np.median(spread)) if np.median(spread) > 0 else 1.0
        ratio = np.abs(error) / np.sqrt(np.square(spread) + floor**2)
        return cls(scale=float(np.quantile(ratio, SHARE_WITHIN_ONE_STD)), floor=floor)

    def std(self, spread: np.ndarray) -> np.ndarray:
        """Return the calibrated standard error (n,) eV of a spread (n,) eV."""
        return self.scale * np.sqrt(np.square(spread) + self.floor**2)


@dataclass(frozen=True)
class Domain:
    """What the training records covered.

    elements: atomic numbers. delta_e_min, delta_e_max: range of ΔE_H, eV. std_max: largest σ, eV, the 95th percentile on the
    validation records.
    """

    elements: tuple[int, ...]
    delta_e_min: float
    delta_e_max: float
    std_max: float

    def complaint(self, numbers: Iterable[int], delta_e: float, std: float) -> str:
        """Return why a prediction is outside the domain; empty when it is inside. delta_e, std: eV."""
        unknown = sorted(set(int(n) for n in numbers) - set(self.elements))
        if unknown:
            return f"not in the training records: {', '.join(chemical_symbols[n] for n in unknown)}"
        if not self.delta_e_min <= delta_e <= self.delta_e_max:
            return f"ΔE_H {delta_e:.2f} eV outside the training range {self.delta_e_min:.2f}..{self.delta_e_max:.2f}"
        if std > self.std_max:
            return f"the members disagree (±{std:.2f} eV, 95 % of the validation records within ±{self.std_max:.2f})"
        return ""


def batch_atoms(
    structures: Sequence[Atoms], dtype: torch.dtype, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (z, pos, cell, batch, tags) of a list of tagged structures, as ``DimeNetPlusPlus.forward`` takes them."""
    sizes = torch.tensor([len(atoms) for atoms in structures])
    return (
        torch.from_numpy(np.concatenate([atoms.numbers for atoms in structures])).long().to(device),
        torch.from_numpy(np.concatenate([atoms.positions for atoms in structures])).to(device, dtype),
        torch.from_numpy(np.stack([atoms.cell.array for atoms in structures])).to(device, dtype),
        torch.repeat_interleave(torch.arange(len(structures)), sizes).to(device),
        torch.from_numpy(np.concatenate([atoms.get_tags() for atoms in structures])).long().to(device),
    )


class HydrogenPredictor:
    """A trained DimeNet++ ensemble with its normaliser, calibration, training domain and, where it has one, DFT correction."""

    def __init__(
        self,
        members: Sequence[DimeNetPlusPlus],
        mean: float,
        std: float,
        calibration: Calibration,
        domain: Domain,
        provenance: dict[str, Any] | None = None,
        correction: DftCorrection | None = None,
    ) -> None:
        self.members = [member.eval() for member in members]
        self.mean, self.std = mean, std
        self.calibration, self.domain, self.correction = calibration, domain, correction
        self.provenance = provenance or {}

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> HydrogenPredictor:
        """Read the checkpoint of stage 1. Raises CheckpointError, saying what to do, when it cannot be used."""
        content = load_checkpoint(path, DIMENET_KIND, HINT, device)
        try:
            settings = DimeNetPlusPlusConfig(**content["model_config"])
            members = []
            for state in content["members"]:
                member = DimeNetPlusPlus(settings).to(device)
                member.load_state_dict(state, strict=True)
                members.append(member)
            domain = Domain(**{**content["domain"], "elements": tuple(content["domain"]["elements"])})
            calibration = Calibration(**content["calibration"])
            stored = content["correction"]
            correction = DftCorrection(**stored) if stored else None
            mean, std = float(content["normalizer"]["mean"]), float(content["normalizer"]["std"])
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise CheckpointError(f"{relative_name(path)} does not fit this version's DimeNet++ ({reason}): {HINT}") from error
        provenance = {"checkpoint": relative_name(path), "sha256": file_sha256(path), "members": len(members)}
        provenance["dft_correction"] = f"{correction.n} DFT points" if correction else "none"
        return cls(members, mean, std, calibration, domain, provenance, correction)

    @staticmethod
    def state(
        calibration: Calibration,
        domain: Domain,
        mean: float,
        std: float,
        members: Sequence[dict],
        correction: DftCorrection | None = None,
    ) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model's settings; the inverse of ``load``."""
        return {
            "members": list(members),
            "normalizer": {"mean": mean, "std": std},
            "calibration": asdict(calibration),
            "domain": {**asdict(domain), "elements": list(domain.elements)},
            "correction": asdict(correction) if correction else None,
        }

    @property
    def max_atomic_number(self) -> int:
        """Return the atomic number of the heaviest element that can be embedded."""
        return self.members[0].max_atomic_number

    @torch.no_grad()
    def member_delta_e(self, structures: Sequence[Atoms]) -> np.ndarray:
        """Return ΔE_H by each member, (members, n) eV. Raises ValueError where a structure has not exactly one H with tag 2."""
        for atoms in structures:
            adsorbed_hydrogen(atoms)
            if atoms.numbers.max() > self.max_atomic_number:
                raise ValueError(f"{chemical_symbols[atoms.numbers.max()]} is heavier than the network's last element")
        parameter = next(self.members[0].parameters())
        batch = batch_atoms(structures, parameter.dtype, parameter.device)
        graph = self.members[0].graph(*batch[1:4])
        energies = torch.stack([member(*batch, graph=graph) for member in self.members])
        return energies.double().cpu().numpy() * self.std + self.mean

    @torch.no_grad()
    def legacy_bare_output(self, atoms: Atoms) -> float:
        """Return the network's output (eV) for a structure WITHOUT H, as the earlier public baseline used it. It means nothing.

        For comparison only: ΔE_H belongs to one H atom, here there is none, and no training record is of this kind. The atomic
        outputs of the whole cell are summed, as in the published DimeNet++ and in the baseline, so that the number grows with the
        cell. It is the mean over the members without the correction from DFT, on the graph of a sheet (periodic along the first two
        cell vectors).

        Raises:
            ValueError: an element cannot be embedded.
        """
        if atoms.numbers.max() > self.max_atomic_number:
            raise ValueError(f"{chemical_symbols[atoms.numbers.max()]} is heavier than the network's last element")
        parameter = next(self.members[0].parameters())
        z, pos, cell, batch, _ = batch_atoms([atoms], parameter.dtype, parameter.device)
        outputs = []
        for member in self.members:
            summed = copy.copy(member)  # the same weights under the published readout
            summed.settings = replace(member.settings, readout="all")
            outputs.append(float(summed(z, pos, cell, batch)))
        return float(np.mean(outputs)) * self.std + self.mean

    def predict_delta_e(
        self, structures: Sequence[Atoms], batch_size: int = 32, gaps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ΔE_H (n,) and its standard error (n,), eV, of sheets that carry exactly one H (tag 2), corrected towards DFT.

        gaps: (n,) eV, band gaps of the sheets, which sharpen the correction; NaN, or None for all, where they are not known.
        """
        return self.corrected(structures, *self.predict_raw(structures, batch_size), gaps)

    def corrected(
        self, structures: Sequence[Atoms], mean: np.ndarray, std: np.ndarray, gaps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Correct the values of ``predict_raw`` towards DFT; they stay as they are where the checkpoint has no correction."""
        return (mean, std) if self.correction is None else self.correction.apply(structures, mean, std, gaps)

    def predict_raw(self, structures: Sequence[Atoms], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Return ΔE_H (n,) and its calibrated standard error (n,), eV, as learnt from the records, without the DFT correction."""
        if not len(structures):
            return np.zeros(0), np.zeros(0)
        chunks = [self.member_delta_e(structures[at : at + batch_size]) for at in range(0, len(structures), batch_size)]
        values = np.concatenate(chunks, 1)
        return values.mean(0), self.calibration.std(ensemble_spread(values))

    def predict_sheet(self, atoms: Atoms, settings: HydrogenSettings, band_gap: Callable[[Atoms], float] | None = None) -> SheetHER:
        """Predict ΔG_H at every symmetry-distinct site of a bare sheet.

        Args:
            atoms: the sheet.
            settings: section ``dataset``.
            band_gap: gives the gap (eV) of the primitive sheet for the correction towards DFT; None: it does without.

        Raises:
            ValueError: the sheet has no site, or the network no value for it.
        """
        job = _SheetJob.build(atoms, settings, self.max_atomic_number)
        if job.result.status != "ok":
            raise ValueError(job.result.status)
        if band_gap is not None:
            job.result.band_gap = band_gap(job.result.sheet)
        return job.finish(*self.predict_raw(job.structures, settings.label_batch_size), self, settings)

    def predict_many(
        self, sheets: Iterable[Atoms], settings: HydrogenSettings, site_cache: SiteStore | None = None
    ) -> Iterator[SheetHER]:
        """Yield what ``predict_sheet`` returns for each sheet, in their order; their sites share batches of ``label_batch_size``.

        ``status`` says why a sheet cannot be judged. One batch is in memory, however many sheets there are.
        site_cache: sites found before; new ones are added.
        """
        waiting: list[_SheetJob] = []
        pending = 0
        for atoms in sheets:
            job = _SheetJob.build(atoms, settings, self.max_atomic_number, site_cache)
            waiting.append(job)
            pending += len(job.structures)
            if pending >= settings.label_batch_size:
                yield from self._finish(waiting, settings)
                waiting, pending = [], 0
        yield from self._finish(waiting, settings)

    def _finish(self, jobs: Sequence[_SheetJob], settings: HydrogenSettings) -> Iterator[SheetHER]:
        mean, std = self.predict_raw([a for job in jobs for a in job.structures], settings.label_batch_size)
        at = 0
        for job in jobs:
            rows = slice(at, at + len(job.structures))
            at = rows.stop
            yield job.finish(mean[rows], std[rows], self, settings)


def ensemble_spread(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the members, (members, n) -> (n,); zeros for a single member."""
    return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


@dataclass
class _SheetJob:
    """A sheet before prediction: its result, still without energies, and a supercell with H for each site."""

    result: SheetHER
    structures: list[Atoms]

    @classmethod
    def build(
        cls, atoms: Atoms, settings: HydrogenSettings, max_atomic_number: int, site_cache: SiteStore | None = None
    ) -> _SheetJob:
        if len(atoms) and atoms.numbers.max() > max_atomic_number:
            reason = f"{chemical_symbols[atoms.numbers.max()]} is heavier than the network's last element"
            return cls(SheetHER(sheet=None, status=reason), [])
        result = site_cache(atoms) if site_cache is not None else place_sites(atoms, settings.h_image_distance_angstrom)
        return cls(result, [add_hydrogen(result.sheet, site, result.supercell) for site in result.sites])

    def finish(self, raw: np.ndarray, raw_std: np.ndarray, judge: HydrogenPredictor, settings: HydrogenSettings) -> SheetHER:
        """Fill in the energies. raw, raw_std: (S,) eV before the DFT correction, to which the training domain refers."""
        if not np.isfinite(raw).all():
            self.result.sites, self.result.status = [], "the network gave a value that is not finite"
            return self.result
        numbers = [] if self.result.sheet is None else [*self.result.sheet.numbers.tolist(), 1]
        pairs = zip(raw.tolist(), raw_std.tolist(), strict=True)
        self.result.complaints = [judge.domain.complaint(numbers, *pair) for pair in pairs]
        delta_e, std = judge.corrected(self.structures, raw, raw_std, np.full(len(raw), self.result.band_gap))
        self.result.delta_e, self.result.delta_g, self.result.std = delta_e, free_energy(delta_e, settings.her_correction_ev), std
        return self.result
