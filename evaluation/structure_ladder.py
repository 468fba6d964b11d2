"""Structure prediction of held-out compositions by several methods on the same rows, from the trivial to the learnt.

Every method gives up to ``benchmark.csp_samples`` sheets of a composition, in its own order. All see the same crystals, those of
training and validation split, and none of these has a formula of the test split.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm import tqdm

from crystals.substitution import KnownCrystals
from evaluation.structure_match import (
    CLOSE_MATCH,
    CSP_MATCHER,
    HeldOut,
    diffusion_samples,
    held_out_sheets,
    match_distance,
    match_rates,
    polymorphs,
)
from generation.ranking import load_trees, ranked_prototypes
from generation.refinement import load_refiner, padded, refine
from generation.sheet_table import known_crystals, known_paths, read_known, read_split
from geo_utils import Sheet, inverse_2x2
from networks.refiner import SheetRefiner, move, symmetric_exp
from networks.sheet_trunk import SheetState
from networks.training import fingerprint
from pipeline.errors import StageError
from pipeline.files import atomic_path, file_sha256
from pipeline.settings import BenchmarkConfig, Config
from pipeline.store import LineStore

SUBSTITUTION, RANDOM, REFINED = "substitution", "random crystal", "substitution, refined"
RANKED, RANKED_MOVED = "ranked prototypes", "ranked prototypes, refined"
DIFFUSION, MOVED = "diffusion", "diffusion, refined"
SIX_ATOMS = (42, 16, 16, 42, 16, 16)  # of which the time per sheet is taken
TIGHT_MATCH = 0.05  # normalised root mean square distance of a sheet that hardly moves when it is relaxed
BOUNDS = {"tight": TIGHT_MATCH, "strict": CLOSE_MATCH, "loose": np.inf}
NOISE_LEVELS = ((0.02, 0.0025), (0.05, 0.005), (0.1, 0.01), (0.2, 0.02), (0.4, 0.04))  # Å of the atoms, strain of the cell
PAIRS = (
    (RANDOM, SUBSTITUTION),
    (REFINED, SUBSTITUTION),
    (RANKED, SUBSTITUTION),
    (RANKED_MOVED, SUBSTITUTION),
    (DIFFUSION, SUBSTITUTION),
    (MOVED, DIFFUSION),
)
LADDER_SAMPLES = "ladder_samples"  # folder of the samples of the diffusion as configured
REFINE_STEPS = 2  # more bring nothing on the validation split


@dataclass(frozen=True)
class Method:
    """A method, the numbers of the rows that it predicts, and the function that returns the sheets of one of them in order."""

    name: str
    rows: Sequence[int]
    predict: Callable[[int], list[Sheet]]
    many: bool = True  # whether the first rows get ``benchmark.csp_samples`` predictions


def ladder(cfg: Config, folder: Path) -> dict[str, Any]:
    """Predict the sheets of the test split by each method; return rates of matches, paired tests, denoising errors and cost.

    Methods without diffusion predict all sheets drawn once, and the first ``benchmark.ladder_rows`` as often as
    ``benchmark.csp_samples`` says. The diffusion predicts the first ``benchmark.ladder_diffusion_rows`` once; part csp does more.

    Args:
        cfg: settings; ``benchmark``, ``dataset``, ``denoiser`` and ``generation`` are read.
        folder: where samples and distances are kept, for a run that is stopped.
    """
    seed = cfg.run.seed
    laid = lay_out(cfg, folder)
    rows, network = laid.rows, laid.network
    truths = polymorphs(cfg.dataset.processed_dir)
    methods: dict[str, Any] = {}
    best: dict[str, dict[int, np.ndarray]] = {}
    for method in laid.methods:
        found = _distances(cfg, method, rows, truths, folder)
        best[method.name] = {k: np.array(row["distances"], dtype=float) for k, row in found.items()}
        methods[method.name] = _rates(cfg, method, rows, found)
    compared = [_row(row, {name: x[k] for name, x in best.items() if k in x}) for k, row in enumerate(rows)]
    return {
        "n": len(rows),
        "left_out": laid.left_out,
        "matcher": CSP_MATCHER,
        "bounds": {"tight": TIGHT_MATCH, "strict": CLOSE_MATCH},
        "ceiling@1": float(np.mean([1 / len(truths[row.composition]) for row in rows])),
        "methods": methods,
        "paired": {f"{a} against {b}": paired_rows(best[a], best[b], cfg.benchmark) for a, b in PAIRS},
        "denoising": denoising_errors(network, [row.sheet for row in rows], seed),
        "seconds_per_sheet": seconds_per_sheet(laid.crystals, network, cfg.benchmark.csp_samples),
        "threads": torch.get_num_threads(),
        "subsets": subsets(compared, read_split(Path(cfg.dataset.processed_dir) / "test.pt"), cfg),
        "rows": compared,
    }


@dataclass(frozen=True)
class Ladder:
    """What is compared: held-out sheets in a random order, what predicts them, and how many sheets were left out as seen."""

    rows: Sequence[HeldOut]
    left_out: int
    network: SheetRefiner
    crystals: KnownCrystals
    methods: Sequence[Method]


def lay_out(cfg: Config, folder: Path) -> Ladder:
    """Draw the held-out sheets and set up the methods; see ``ladder``.

    Raises:
        StageError: refiner or ranker have seen every sheet of the test split.
    """
    settings, seed = cfg.benchmark, cfg.run.seed
    network, content = load_refiner(cfg.generation.refiner_checkpoint)
    drawn = held_out_sheets(cfg.dataset.processed_dir, settings.csp_max_atoms, settings.csp_rows, seed)
    seen = {*content.get("formulas_seen", []), *load_trees(cfg.generation.ranker_checkpoint)[1]}
    rows = [row for row in drawn if row.formula not in seen]
    if not rows:
        raise StageError("refiner or ranker have seen every sheet of the test split: the data set was split in another way")
    rows = [rows[k] for k in np.random.default_rng([seed, 0x1A]).permutation(len(rows))]  # the first ones are a random sample
    table = read_known(cfg.dataset.processed_dir)
    crystals = known_crystals(table)
    methods = _methods(cfg, network, rows, folder, table, crystals)
    return Ladder(rows, len(drawn) - len(rows), network, crystals, methods)


def _row(row: HeldOut, distances: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the distances of the first and of the best sample of a sheet by each method; None for no match."""
    result: dict[str, Any] = {"uid": row.uid, "formula": row.formula, "num_atoms": len(row.sheet)}
    for name, values in distances.items():
        result[f"{name} @1"] = _plain(values[0])
        if len(values) > 1:
            result[f"{name} @k"] = _plain(np.fmin.reduce(values))
    return result


def subsets(rows: Sequence[Mapping[str, Any]], table: Mapping[str, Any], cfg: Config) -> dict[str, Any]:
    """Return the strict matches on sheets that could exist: near the hull, the most stable of their composition, or both.

    A database holds several sheets of some compositions, most of which are not what one would make.

    Args:
        rows: of ``ladder``.
        table: the test split, as ``read_split`` gives it; the most stable sheet of a composition is that of its rows.
        cfg: ``evaluation.hit_e_hull_ev`` says what is near the hull.

    Returns:
        For each subset ``n``, match@1 and, on ``n_many`` rows, match@k of each method without diffusion, and the paired test of
        refined ranked prototypes against substitution.
    """
    e_hull = dict(zip(table["uid"], table["e_hull"].tolist(), strict=True))
    lowest: dict[str, float] = {}
    for uid, formula in zip(table["uid"], table["formula"], strict=True):
        lowest[formula] = min(lowest.get(formula, np.inf), e_hull[uid])
    near = [row for row in rows if e_hull[row["uid"]] <= cfg.evaluation.hit_e_hull_ev]
    ground = [row for row in rows if e_hull[row["uid"]] <= lowest[row["formula"]]]
    both = [row for row in near if row in ground]
    return {name: _subset(own, cfg) for name, own in (("near the hull", near), ("ground state", ground), ("both", both)) if own}


def _subset(rows: Sequence[Mapping[str, Any]], cfg: Config) -> dict[str, Any]:
    """Return what ``subsets`` says of one of them."""
    result: dict[str, Any] = {"n": len(rows), "methods": {}}
    own = [row for row in rows if f"{SUBSTITUTION} @k" in row]
    for name in (SUBSTITUTION, RANDOM, REFINED, RANKED, RANKED_MOVED):
        first = _strict(rows, f"{name} @1", cfg)
        result["methods"][name] = {"match@1": first}
        if name != RANKED and own:
            result["methods"][name]["match@k"] = _strict(own, f"{name} @k", cfg)
    ours, theirs = (np.array([[_distance(row.get(f"{name} @1"))] for row in rows]) for name in (RANKED_MOVED, SUBSTITUTION))
    return result | {"n_many": len(own), "paired": paired(ours, theirs)["strict@1"]}


def _strict(rows: Sequence[Mapping[str, Any]], column: str, cfg: Config) -> list[float]:
    """Return the share of strict matches in a column, and its 95 % interval."""
    values = np.array([[_distance(row.get(column))] for row in rows])
    sizes = np.array([row["num_atoms"] for row in rows])
    found = match_rates(np.where(values <= CLOSE_MATCH, values, np.nan), sizes, cfg.run.seed, cfg.evaluation.bootstrap)
    return [found["match@1"], *found["match@1_interval"]]


def _distance(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of ``ladder`` as a table; an empty field is no match, or no sample."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)


def _methods(
    cfg: Config,
    network: SheetRefiner,
    rows: Sequence[HeldOut],
    folder: Path,
    table: dict[str, Any],
    crystals: KnownCrystals,
) -> list[Method]:
    """Return the methods, the trivial ones first. table: of ``read_known``. crystals: the same for substitution."""
    settings = cfg.benchmark
    count = lambda k: settings.csp_samples if k < settings.ladder_rows else 1  # noqa: E731
    numbers = lambda k: rows[k].sheet.atomic_numbers  # noqa: E731
    random = lambda k: crystals.drawn(numbers(k), count(k), np.random.default_rng([cfg.run.seed, k]))  # noqa: E731
    nearest = lambda k: crystals.nearest(numbers(k), count(k))  # noqa: E731
    sampled = diffusion_samples(cfg, rows[: settings.ladder_diffusion_rows], 1, folder / LADDER_SAMPLES)
    trees = cfg.generation.ranker_checkpoint
    # The library takes minutes, which a run that has all its distances does not need.
    prototypes = cache(lambda: ranked_prototypes(table, trees))
    ranked = lambda k, most: prototypes().nearest(numbers(k), most)  # noqa: E731
    every = range(len(rows))
    return [
        Method(SUBSTITUTION, every, nearest),
        Method(RANDOM, every, random),
        Method(REFINED, every, lambda k: refine(network, nearest(k), REFINE_STEPS)),
        Method(RANKED, every, lambda k: ranked(k, 1), many=False),
        Method(RANKED_MOVED, every, lambda k: refine(network, ranked(k, count(k)), REFINE_STEPS)),
        Method(DIFFUSION, list(sampled), sampled.__getitem__, many=False),
        Method(MOVED, list(sampled), lambda k: refine(network, sampled[k], REFINE_STEPS), many=False),
    ]


def _distances(
    cfg: Config, method: Method, rows: Sequence[HeldOut], truths: dict[tuple[int, ...], list[Sheet]], folder: Path
) -> dict[int, dict[str, Any]]:
    """Return by row the distances of its samples, and that of the first one to the nearest polymorph on record; None: no match."""
    weights = [cfg.generation.refiner_checkpoint, cfg.denoiser.checkpoint, *known_paths(cfg.dataset.processed_dir)]
    about = {
        "rows": [row.uid for row in rows],
        "samples": [cfg.benchmark.csp_samples, cfg.benchmark.ladder_rows],
        "method": method.name,
        "seed": cfg.run.seed,
        "inputs": [file_sha256(path) for path in weights],
    }
    if method.name in (RANKED, RANKED_MOVED):
        about["ranker"] = file_sha256(cfg.generation.ranker_checkpoint)
    file = f"ladder_{method.name.replace(', ', '_').replace(' ', '_')}.jsonl"
    store = LineStore(folder / file, {"fingerprint": fingerprint(about)})
    for k in tqdm(method.rows, desc=f"structure prediction, {method.name}", unit="sheet", mininterval=1.0):
        if k in store:
            continue
        sheets = method.predict(k)
        distances = [_plain(match_distance(sheet, rows[k].sheet)) for sheet in sheets] or [None]
        nearest = [match_distance(sheet, truth) for sheet in sheets[:1] for truth in truths[rows[k].composition]] or [np.nan]
        store.add(k, {"distances": distances, "nearest_polymorph": _plain(np.fmin.reduce(nearest))})
    return {k: store[k] for k in method.rows}


def _rates(cfg: Config, method: Method, rows: Sequence[HeldOut], found: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the rates of one method: @1 on all of its rows, @k on those with k samples, within each bound."""
    settings, width = cfg.benchmark, cfg.benchmark.csp_samples

    def rates(values: list[list[float | None]], own: Iterable[int], limit: float) -> dict[str, Any]:
        distances = np.array(values, dtype=float)
        sizes = np.array([len(rows[k].sheet) for k in own])
        return match_rates(np.where(distances <= limit, distances, np.nan), sizes, cfg.run.seed, cfg.evaluation.bootstrap)

    many = [k for k in found if method.many and k < settings.ladder_rows]
    first = [row["distances"][:1] for row in found.values()]
    samples = [(found[k]["distances"] + [None] * width)[:width] for k in many]
    polymorph = [[row["nearest_polymorph"]] for row in found.values()]
    result: dict[str, Any] = {"n": len(found), "n_many": len(many)}
    for bound, limit in BOUNDS.items():
        result[bound] = (rates(samples, many, limit) if many else {}) | rates(first, found, limit)
        result[f"any_polymorph_{bound}"] = rates(polymorph, found, limit)
    matched = np.array(first, dtype=float)
    result["median_rmsd@1"] = float(np.nanmedian(matched)) if np.isfinite(matched).any() else None
    return result


def _plain(distance: float) -> float | None:
    """Return a distance for the JSON file: rounded, None for no match."""
    return round(float(distance), 4) if np.isfinite(distance) else None


def paired_rows(
    first: dict[int, np.ndarray], second: dict[int, np.ndarray], settings: BenchmarkConfig
) -> dict[str, dict[str, Any]]:
    """Compare two methods by ``paired``: @1 on all rows that both have, @k where both give k samples; distances by row."""
    own, width = sorted(first.keys() & second.keys()), settings.csp_samples
    fill = lambda x, count, rows: np.array([[*x[k][:count], *[np.nan] * (count - len(x[k]))] for k in rows])  # noqa: E731
    result = paired(*(fill(x, 1, own) for x in (first, second)))
    if any(max(map(len, x.values())) == 1 for x in (first, second)):  # a method of one sample a row
        return result
    many = [k for k in own if k < settings.ladder_rows]
    more = paired(*(fill(x, width, many) for x in (first, second)))
    return result | {label: found for label, found in more.items() if label not in result}


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, dict[str, Any]]:
    """Compare two methods on the same rows by McNemar's exact test.

    Args:
        first: (rows, k) distances, NaN for no match; the first sample is @1, the best of all k is @k.
        second: of the other method.

    Returns:
        For each of tight, strict and loose @1 and @k: rows where one alone is right, and the two-sided p.
    """
    result = {}
    for label, bound in BOUNDS.items():
        for count in sorted({1, first.shape[1]}):
            ours, theirs = ((np.isfinite(x[:, :count]) & (x[:, :count] <= bound)).any(1) for x in (first, second))
            result[f"{label}@{count}"] = one_alone(ours, theirs)
    return result


def one_alone(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return on how many rows one of two methods alone is right, (rows,) bool each, and the two-sided p of McNemar's exact test."""
    only, other = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(only, only + other).pvalue) if only + other else 1.0
    return {"first_alone": only, "second_alone": other, "p": p}


def denoising_errors(network: SheetRefiner, sheets: Sequence[Sheet], seed: int) -> list[dict[str, float]]:
    """Return root mean square errors of noised sheets before and after one step, for each level of ``NOISE_LEVELS``.

    Noise is isotropic in Å for the atoms, and a symmetric strain for the cell. A common shift of all atoms is no error.
    """
    result = []
    for place, strain in NOISE_LEVELS:
        generator = torch.Generator().manual_seed(seed)
        errors = []
        for start in range(0, len(sheets), 32):
            truth = padded(sheets[start : start + 32])
            shape, mask = truth.heights.shape, truth.mask
            e = strain * torch.randn(shape[0], 2, 2, generator=generator)
            cell = truth.cell @ symmetric_exp((e + e.transpose(1, 2)) / 2**0.5)
            shift = place * torch.randn(*shape, 3, generator=generator) * mask[..., None]
            shift = (shift - (shift.sum(1) / mask.sum(1)[:, None])[:, None]) * mask[..., None]
            frac = truth.frac_coords + shift[..., :2] @ inverse_2x2(cell)
            noised = SheetState(truth.atomic_numbers, frac, truth.heights + shift[..., 2], cell, mask)
            with torch.no_grad():
                moved = move(noised, network(noised))
            errors.append([_errors(noised, truth), _errors(moved, truth)])
        before, after = (torch.cat(part).double().mean(0).sqrt().tolist() for part in zip(*errors, strict=True))
        names = ("height", "in_plane", "strain")
        row = {"noise_angstrom": place, "noise_strain": strain}
        result.append(row | {f"{name}_before": x for name, x in zip(names, before, strict=True)}
                      | {f"{name}_after": x for name, x in zip(names, after, strict=True)})  # fmt: skip
    return result


def _errors(state: SheetState, truth: SheetState) -> torch.Tensor:
    """Return (B, 3) mean squared errors of heights, in-plane positions (each direction, Å²) and strain."""
    sizes = truth.mask.sum(1)
    delta = (state.frac_coords - truth.frac_coords) * truth.mask[..., None]
    delta = (delta - (delta.sum(1) / sizes[:, None])[:, None]) * truth.mask[..., None]
    plane = ((delta @ truth.cell) ** 2).sum((1, 2)) / (2 * sizes)
    height = (((state.heights - truth.heights) * truth.mask) ** 2).sum(1) / sizes
    inverse = inverse_2x2(truth.cell)
    gram = inverse @ state.cell @ state.cell.transpose(1, 2) @ inverse.transpose(1, 2)
    strain = 0.5 * (gram - torch.eye(2))
    return torch.stack([height, plane, (strain**2).mean((1, 2))], 1)


def seconds_per_sheet(crystals: KnownCrystals, network: SheetRefiner, count: int) -> float | None:
    """Return the time of one of ``count`` refined substitutions for a composition of six atoms; None where no crystal fits."""
    refine(network, crystals.nearest(SIX_ATOMS, 1), REFINE_STEPS)  # untimed: the first call fills caches
    start = time.monotonic()
    found = refine(network, crystals.nearest(SIX_ATOMS, count), REFINE_STEPS)
    return round((time.monotonic() - start) / len(found), 4) if found else None


def ladder_lines(found: dict[str, Any]) -> list[str]:
    """Return the table of the methods as lines of text."""
    lines = [f"structure prediction on {found['n']} held-out sheets: tight, strict and loose matches"]
    for name, rates in found["methods"].items():
        keys = sorted(key for key in rates["loose"] if key.startswith("match@") and not key.endswith("interval"))
        parts = [f"{key[5:]} {' '.join(f'{rates[bound][key]:.0%}' for bound in BOUNDS)}" for key in keys]
        lines.append(f"  {name} ({rates['n']}): {', '.join(parts)}")
    return lines
