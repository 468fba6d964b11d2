"""Measures the generator: structure prediction on held-out formulas, and what guidance does at each guidance scale.

Part csp         samples sheets of the test split from their composition alone and compares them with the structure on record by
                 pymatgen's StructureMatcher (ltol 0.3, stol 0.5, angle 10°; match@1, match@k, root mean square distance), as
                 DiffCSP reports it (Jiao et al., NeurIPS 2023)
Part ladder      compares the diffusion with a random training crystal, with substitution in the nearest ones and in those that the
                 ranker puts first, each also as the refiner moves it, on the same rows
Part relaxed     relaxes the first prediction of each of these methods with the potential, and compares the energy with that of the
                 sheet on record
Part diffusion   what one step of the diffusion of coordinates removes at each time, and what its steps and its corrector do
Part generation  runs stage 4 as configured for many structures; their layer groups stand beside those of the training set
Part guidance    runs stage 4 at every guidance scale and every classifier-free scale, without the prefilter
Part search      compares, on equal numbers of judged sheets, no guidance, each kind of guidance, plain screening (known crystals
                 with other elements, chosen by the heads, no diffusion), and the prefilter with and without the diffusion
Part hull        compares E_above_hull with the database's on sheets that stage 4 makes of held-out formulas, where they are sheets
                 of the database

Parts generation and guidance are judged as in stage 5, with a DimeNet++ that had no part in the labels and, unless
evaluation.potential_h_sites is 0, with the potential's own ΔG_H. Parts search and hull have the judges of the configuration.

Reads dataset.processed_dir (csp, hull: test.pt; ladder, relaxed, diffusion: all splits), denoiser.checkpoint and the judges. Writes
csp.json, ladder.json, ladder.csv, ladder_relaxed.json, diffusion.json, generation.json, layer_groups.png, search.json, hull.json
and guidance.json to benchmark.output_dir, and guidance.png beside the other figures. A run that is stopped goes on where it was.

    python -m scripts.benchmark_generator denoiser.checkpoint=weights/denoiser.pth benchmark.parts=[guidance]
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.statistics import rate_metric
from pipeline.cli import resolve_device, run_stage
from pipeline.errors import ConfigError
from pipeline.files import file_sha256, missing_file, relative_name, write_json
from pipeline.provenance import SCHEMA_VERSION, git_commit, read_sidecar
from pipeline.settings import BenchmarkConfig, Config, GenerationConfig

STAGE = "benchmark_generator.py"


def predict_structures(cfg: Config, folder: Path) -> dict[str, Any]:
    """Run part csp: sample held-out compositions, without guidance, as stage 4 does; return rates of matches.

    Sheets with elements that the model was not trained on are left out, as are those that the weights it started from have seen:
    denoiser.init_from may have been trained on another data set, split in another way. With generation.refine_samples the refiner
    moves the samples; then sheets that it has seen are left out, too.
    """
    from evaluation.structure_match import (
        CLOSE_MATCH,
        CSP_MATCHER,
        diffusion_samples,
        held_out_sheets,
        match_distance,
        match_rates,
        refined_samples,
    )

    settings, seed = cfg.benchmark, cfg.run.seed
    drawn = held_out_sheets(cfg.dataset.processed_dir, settings.csp_max_atoms, settings.csp_rows, seed)
    sampled = diffusion_samples(cfg, drawn, settings.csp_samples, folder / "csp_samples")
    refine_steps = cfg.generation.refine_steps if cfg.generation.refine_samples else 0
    if refine_steps:
        sampled = refined_samples(cfg, drawn, sampled, refine_steps)
    rows = [drawn[k] for k in sampled]
    matching = tqdm(zip(rows, sampled.values(), strict=True), total=len(rows), desc="matching", unit="row")
    distances = np.array([[match_distance(sheet, row.sheet) for sheet in sheets] for row, sheets in matching])
    sizes = np.array([len(row.sheet) for row in rows])
    # The tolerance in use elsewhere is wide for sheets: 2H and 1T of MoS2 match at a distance of 0.31.
    close = match_rates(np.where(distances <= CLOSE_MATCH, distances, np.nan), sizes, seed, cfg.evaluation.bootstrap)
    return match_rates(distances, sizes, seed, cfg.evaluation.bootstrap) | {
        f"within_{CLOSE_MATCH:g}": close,
        "num_steps": cfg.generation.num_steps,
        "refine_steps": refine_steps,
        "matcher": CSP_MATCHER,
        "left_out": len(drawn) - len(rows),  # of elements unknown to the model, or seen by the weights that it started from
        "rows": [
            {"uid": row.uid, "formula": row.formula, "num_atoms": len(row.sheet), "matches": int(np.isfinite(distances[k]).sum())}
            for k, row in enumerate(rows)
        ],
    }


def guidance_settings(settings: BenchmarkConfig, generation: GenerationConfig) -> list[tuple[str, float, float]]:
    """Return (series, η, w): gradient guidance alone, classifier-free guidance alone, and stage 4's own; no setting twice."""
    found = [("gradient", eta, 0.0) for eta in settings.guidance_scales]
    found += [("classifier-free", 0.0, w) for w in settings.cfg_scales]
    found.append(("both", generation.guidance_scale, generation.cfg_scale))
    seen: dict[tuple[float, float], str] = {}
    for series, eta, w in found:
        seen.setdefault((float(eta), float(w)), series)
    return [(series, eta, w) for (eta, w), series in seen.items()]


def setting_name(eta: float, w: float) -> str:
    """Return the folder of a setting of the guidance, such as ``eta_0.3_w_0``."""
    return f"eta_{eta:g}_w_{w:g}"


def guidance_response(cfg: Config, folder: Path) -> list[dict[str, Any]]:
    """Run part guidance: generate and judge at each setting; return a row for each, with every aggregate and its interval."""
    settings = cfg.benchmark
    plan = guidance_settings(settings, cfg.generation)
    rows = []
    with _pool(cfg) as pool:
        counts = {
            (eta, w): generate(cfg, folder / setting_name(eta, w), eta, w, settings.num_structures, prefilter=False)["counts"]
            for _, eta, w in plan
        }
        for series, eta, w in plan:
            cifs = folder / setting_name(eta, w)
            row = {"series": series, "guidance_scale": eta, "cfg_scale": w}
            rows.append(row | judge_set(cfg, pool, cifs, counts[eta, w], folder / "cache"))
    return rows


def search_scores(cfg: Config, folder: Path) -> list[dict[str, Any]]:
    """Run part search: generate and judge by each of ``search_benchmark.SEARCHES``."""
    from evaluation import search_benchmark

    def make(cifs: Path, eta: float, w: float, changes: Mapping[str, Any]) -> dict[str, Any]:
        return generate(cfg, cifs, eta, w, cfg.benchmark.search_structures, **changes)

    def judge(pool: Any, cifs: Path, counts: dict[str, int]) -> dict[str, Any]:
        return judge_set(cfg, pool, cifs, counts, folder / "cache", chances=True)

    return search_benchmark.search_scores(cfg, folder, make, judge)


def hull_scores(cfg: Config, folder: Path) -> dict[str, Any]:
    """Run part hull: stage 4 makes a sheet of each held-out formula, as it does for ``generation.recipes``."""
    from evaluation.generated_hull import generated_hull

    def make(formulas: Sequence[str], cifs: Path) -> None:
        generate(cfg, cifs, 0.0, 0.0, len(formulas), recipes=list(formulas))

    return generated_hull(cfg, folder, make)


def generate(cfg: Config, folder: Path, eta: float, w: float, number: int, **changes: Any) -> dict[str, Any]:
    """Run stage 4 at one setting of the guidance into a folder, with further changes of its settings; return its manifest."""
    from evaluation.prefilter import Prefilter
    from generation.generate import CHECKPOINT_HINT, generate_structures, uses_prefilter
    from generation.generate import STAGE as GENERATOR_STAGE
    from models import load_denoiser, load_for_sampling

    generation = dataclasses.replace(
        cfg.generation, guidance_scale=eta, cfg_scale=w, num_structures=number, output_dir=str(folder), **changes
    )
    model, content = load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT, resolve_device(cfg.run))
    prefilter = Prefilter(cfg) if uses_prefilter(generation) else None
    load = partial(load_for_sampling, cfg.denoiser.checkpoint)
    generate_structures(dataclasses.replace(cfg, generation=generation), model, content, load, prefilter)
    return read_sidecar(folder, stage=GENERATOR_STAGE)


def _pool(cfg: Config) -> Any:
    """Return the judges of the configuration, with ``benchmark.judge_checkpoint`` as DimeNet++."""
    from evaluation import judges
    from evaluation.judge_pool import JudgePool

    judge = cfg.benchmark.judge_checkpoint
    if not Path(judge).is_file():
        hint = "train one with pretrain_dimenet.py run.seed=1 dimenet.checkpoint=...: the model that labelled must not judge"
        raise missing_file("benchmark.judge_checkpoint", judge, hint)
    judged = dataclasses.replace(cfg, dimenet=dataclasses.replace(cfg.dimenet, checkpoint=judge))
    return JudgePool(partial(judges.load_judges, judged), judges.judge_identity(judged), cfg.evaluation.workers, cfg.run)


def judge_set(cfg: Config, pool: Any, cifs: Path, counts: dict[str, int], cache: Path, chances: bool = False) -> dict[str, Any]:
    """Judge a generated set; return every aggregate with its interval, the share of valid samples, and the layer groups.

    chances: whether it has ``search_benchmark.probabilities`` of each candidate.
    """
    from evaluation import evaluate
    from evaluation.search_benchmark import probabilities

    evaluation = evaluate.evaluate(cifs, pool, cfg.evaluation, cifs / "judged", cifs.name, seed=cfg.run.seed, cache_dir=cache)
    aggregates = {name: dataclasses.asdict(metric) for name, metric in evaluation.aggregates.items()}
    sampled = rate_metric(
        "sampled_valid",
        [True] * counts["valid"] + [False] * (counts["sampled"] - counts["valid"]),
        better=1,
        doc="sampled sheets without clash, connected, not too thick, before any selection",
        resamples=cfg.evaluation.bootstrap,
        rng=np.random.default_rng(cfg.run.seed),
    )
    further = probabilities(evaluation.rows, cfg.evaluation) if chances else {}
    return further | {
        "sampled": counts["sampled"],
        "sampled_clash": counts["clash"],
        "sampled_disconnected": counts["disconnected"],
        "layer_groups": dict(Counter(row.layer_group for row in evaluation.rows).most_common()),
        "formulas": len({row.reduced_formula for row in evaluation.rows}),
        "element_entropy_bits": element_entropy([row.elements() for row in evaluation.rows]),
        "aggregates": aggregates | {"sampled_valid": dataclasses.asdict(sampled)},
    }


def element_entropy(sets: Sequence[set[str]]) -> float:
    """Return the entropy in bits of an element drawn from a sheet drawn at random: 0 where all sheets are of one element."""
    counts: Counter[str] = Counter()
    for elements in filter(None, sets):
        counts.update({element: 1 / len(elements) for element in elements})
    shares = np.array(list(counts.values())) / max(sum(counts.values()), 1)
    return round(float(-(shares * np.log2(shares)).sum()), 4) + 0.0


def training_entropy(cfg: Config) -> float:
    """Return ``element_entropy`` of the compositions of the training set that are made of allowed elements."""
    from pymatgen.core import Composition

    from crystals.recipes import allowed_elements
    from generation.generate import CHECKPOINT_HINT
    from models import load_denoiser

    settings, content = cfg.generation, load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT)[1]
    allowed = allowed_elements(set(content["elements"]), settings.elements, settings.exclude_elements)
    sets = [Composition(formula).elements for formula in content["formulas"]]
    return element_entropy([{element.symbol for element in own} for own in sets if {element.Z for element in own} <= allowed])


def generation_score(cfg: Config, folder: Path) -> dict[str, Any]:
    """Run part generation: judge sheets of stage 4 as configured, and count their layer groups and those of the training set."""
    from crystals.templates import TemplateLibrary
    from generation.generate import CHECKPOINT_HINT
    from models import load_denoiser

    cifs = folder / "generation"
    settings = cfg.generation
    with _pool(cfg) as pool:
        number = cfg.benchmark.generation_structures
        manifest = generate(cfg, cifs, settings.guidance_scale, settings.cfg_scale, number)
        result = judge_set(cfg, pool, cifs, manifest["counts"], folder / "cache")
    library = TemplateLibrary.from_state_dict(load_denoiser(cfg.denoiser.checkpoint, CHECKPOINT_HINT)[1].get("templates", []))
    known: Counter[int] = Counter()
    for template, rows in zip(library.templates, library.decorations, strict=True):
        known[template.layer_group] += len(rows)
    numbers = Counter(row["layer_group_number"] for row in manifest["candidates"])
    return result | {
        "layer_group_numbers": {str(number): count for number, count in sorted(numbers.items())},
        "training_layer_group_numbers": {str(number): count for number, count in sorted(known.items())},
    }


def main(cfg: Config) -> None:
    """Run the parts named in ``benchmark.parts``."""
    from evaluation.search_benchmark import SEARCHES

    settings = cfg.benchmark
    unknown = sorted(set(settings.parts) - {"all", *_RUNS})
    if unknown or not settings.parts:
        raise ConfigError(f"benchmark.parts: {unknown or 'nothing'}; choose all, or some of {', '.join(_RUNS)}")
    if other := sorted(set(settings.searches) - set(SEARCHES)):
        raise ConfigError(f"benchmark.searches: {', '.join(other)}; choose some of {', '.join(map(repr, SEARCHES))}")
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in _RUNS.items():
        if name in settings.parts or "all" in settings.parts:
            run(cfg, folder)


def _run_csp(cfg: Config, folder: Path) -> None:
    found = predict_structures(cfg, folder)
    _write(cfg, folder / "csp.json", [cfg.denoiser.checkpoint, Path(cfg.dataset.processed_dir) / "test.pt"], found)
    rates = ", ".join(f"match@{k} {found[f'match@{k}']:.0%}" for k in sorted({1, cfg.benchmark.csp_samples}))
    print(f"structure prediction on {found['n']} held-out sheets: {rates}")


def _splits(cfg: Config) -> list[Path]:
    """Return the files that structure prediction reads: the known crystals, and those held out."""
    from generation.sheet_table import known_paths

    return [*known_paths(cfg.dataset.processed_dir), Path(cfg.dataset.processed_dir) / "test.pt"]


def _run_ladder(cfg: Config, folder: Path) -> None:
    from evaluation.structure_ladder import ladder, ladder_lines, write_rows

    found = ladder(cfg, folder)
    write_rows(folder / "ladder.csv", found.pop("rows"))
    weights = [cfg.generation.refiner_checkpoint, cfg.generation.ranker_checkpoint, cfg.denoiser.checkpoint]
    _write(cfg, folder / "ladder.json", [*weights, *_splits(cfg)], found)
    print("\n".join(ladder_lines(found)))


def _run_diffusion(cfg: Config, folder: Path) -> None:
    from evaluation.diffusion_trials import diffusion_trials

    found = diffusion_trials(cfg, folder)
    _write(cfg, folder / "diffusion.json", [cfg.denoiser.checkpoint, cfg.generation.refiner_checkpoint, *_splits(cfg)], found)
    print(f"first samples of {found['n']} held-out sheets by the diffusion of coordinates: strict and loose matches")
    for name, row in found["trials"].items():
        print(f"  {name}: {row['strict'][0]:.0%} {row['loose'][0]:.0%}")


def _run_relaxed(cfg: Config, folder: Path) -> None:
    from evaluation.relaxed_ladder import relaxed_ladder

    found = relaxed_ladder(cfg, folder)
    weights = [cfg.generation.refiner_checkpoint, cfg.generation.ranker_checkpoint, cfg.denoiser.checkpoint]
    _write(cfg, folder / "ladder_relaxed.json", [*weights, *_splits(cfg)], found)
    print(f"first predictions of {found['n']} held-out sheets, relaxed by {found['potential']}: as low as the sheet on record")
    for name, row in found["methods"].items():
        print(f"  {name}: {row['as_low']['value']:.0%}, {row['above_ev']['value']:.3f} eV/atom above the lower one")


def _run_generation(cfg: Config, folder: Path) -> None:
    from evaluation.benchmark_figures import draw_layer_groups

    found = generation_score(cfg, folder)
    _write(cfg, folder / "generation.json", [cfg.denoiser.checkpoint, cfg.benchmark.judge_checkpoint], found)
    draw_layer_groups(found, folder / "layer_groups.png")
    shown = ("sampled_valid", "rate_charge_neutral", "rate_converged", "rate_metastable", "rate_metastable_sun")
    rates = ", ".join(f"{name} {found['aggregates'][name]['value']:.0%}" for name in shown)
    print(f"generation of {found['sampled']} sheets: {rates}")


def _run_search(cfg: Config, folder: Path) -> None:
    rows = search_scores(cfg, folder)
    found = {"searches": rows, "training_element_entropy_bits": training_entropy(cfg)}
    _write(cfg, folder / "search.json", [cfg.denoiser.checkpoint, cfg.dimenet.checkpoint], found)
    for row in rows:
        expected, near = row["expected"]["p_hits"], row["aggregates"]["rate_metastable"]
        print(f"{row['name']}: hits to expect {expected['value']:.1%}, near the hull {near['value']:.0%}")


def _run_hull(cfg: Config, folder: Path) -> None:
    found = hull_scores(cfg, folder)
    weights = [
        cfg.evaluation.hull_checkpoint,
        cfg.evaluation.hull_network,
        cfg.evaluation.references_path,
        cfg.generation.refiner_checkpoint,
    ]
    _write(cfg, folder / "hull.json", [*weights, Path(cfg.dataset.processed_dir) / "test.pt"], found)
    print(f"E_above_hull on {found['n_known']} generated sheets of the database, of {found['n_made']}:")
    for name, row in found["hulls"].items():
        print(f"  {name}: MAE {row['mae_ev'][0]:.3f} eV/atom, same verdict {row['agree'][0]:.0%}")


def _run_guidance(cfg: Config, folder: Path) -> None:
    from evaluation.benchmark_figures import draw_guidance

    rows = guidance_response(cfg, folder)
    _write(cfg, folder / "guidance.json", [cfg.denoiser.checkpoint, cfg.benchmark.judge_checkpoint], {"doses": rows})
    draw_guidance(rows, Path(cfg.run.output_dir) / "guidance.png")
    for row in rows:
        hits, valid = row["aggregates"]["hit_rate_dimenet"], row["aggregates"]["sampled_valid"]
        setting = f"η {row['guidance_scale']:g}, w {row['cfg_scale']:g}"
        print(f"{setting}: hits {hits['value']:.1%}, valid as sampled {valid['value']:.0%}")


# In the order in which they run; each is given the configuration and a folder.
_RUNS = {
    "csp": _run_csp,
    "ladder": _run_ladder,
    "relaxed": _run_relaxed,
    "diffusion": _run_diffusion,
    "generation": _run_generation,
    "search": _run_search,
    "hull": _run_hull,
    "guidance": _run_guidance,
}


def _write(cfg: Config, path: Path, inputs: Sequence[str | Path], content: dict[str, Any]) -> None:
    from evaluation.candidate import JUDGED_SETTINGS

    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "stage": STAGE,
            "git_commit": git_commit(),
            "seed": cfg.run.seed,
            "settings": _without_machine(cfg.benchmark),
            "generation": _without_machine(cfg.generation),
            "evaluation": {name: getattr(cfg.evaluation, name) for name in ("potential", *JUDGED_SETTINGS)},
            "inputs": {relative_name(p): file_sha256(p) for p in inputs},
        }
        | content,
    )


def _without_machine(settings: BenchmarkConfig | GenerationConfig) -> dict[str, Any]:
    """Return the settings of a section with their paths relative to the project."""
    paths = {field.name for field in dataclasses.fields(settings) if field.metadata["path"]}
    values = dataclasses.asdict(settings)
    return {name: relative_name(value) if name in paths and value else value for name, value in values.items()}


if __name__ == "__main__":
    raise SystemExit(run_stage(main, __doc__, ("run", "dataset", "denoiser", "generation", "benchmark", "evaluation", "dimenet")))
