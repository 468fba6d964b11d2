"""Declares every setting with its default, meaning and range; one frozen dataclass for each section.

``config.yaml`` repeats defaults and meanings for the reader; a test compares the two.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from pipeline.loop_settings import LoopConfig
from pipeline.property_settings import ActivityConfig, BandGapConfig, LearntHullConfig, PhononBenchmarkConfig
from pipeline.setting_field import setting
from pipeline.structure_settings import ElementTrainingConfig, HullNetworkConfig, RankerConfig, RefinerTrainingConfig

POTENTIALS = ("sevennet-0", "sevennet-l3i5", "sevennet-mf-0", "mattersim")
# Toxic in electrodes that people handle, or radioactive.
HAZARDS = ["Be", "As", "Cd", "Hg", "Tl", "Pb", "Tc", "Pm", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu"]
BASELINE_DIR = "data/baseline"  # the structures that stage 6 judges where nobody names others


@dataclass(frozen=True)
class RunConfig:
    """Settings of every stage."""

    seed: int = setting(0, "seed of every random generator", low=0, high=2**32 - 1)
    device: str = setting("auto", "auto | cpu | cuda | cuda:N (auto: GPU when there is one)")
    threads: int = setting(0, "CPU threads of the process; 0: all cores", low=0, high=1024)
    precision: str = setting(
        "float32",
        "training on a GPU: float32, or bf16 (the layers multiply in bfloat16; geometry, sums and weights stay float32)",
        choices=("float32", "bf16"),
    )
    output_dir: str = setting("results/run", "root of everything the stages write", path=True)
    scheduler: str = setting(
        "processes",
        "where labelling, judging, stage 0 and members of DimeNet++ run: processes (of this machine) | "
        "dask (a Dask cluster of this machine) | slurm (a job for every worker) | tcp://HOST:PORT (a running Dask scheduler)",
    )
    walltime: str = setting("04:00:00", "slurm: time limit of a worker")
    queue: str = setting("", "slurm: partition; empty: the default one")
    account: str = setting("", "slurm: account; empty: the default one")
    worker_memory_gb: int = setting(4, "slurm: memory of a worker", low=1)
    gpus_per_worker: int = setting(0, "slurm, dask: GPUs of a worker; with them set run.device=cuda", low=0)


@dataclass(frozen=True)
class DemoConfig:
    """Settings of stage 0, which builds the embedded data."""

    parts: list[str] = setting(
        ["all"], "all of monolayers, references, adsorption, random, known, baseline; or some of these, hosts, snapshots, truth"
    )
    db_path: str = setting("data/demo_c2db.db", "monolayer database to build (ASE db)", path=True)
    lmdb_path: str = setting("data/demo_is2re/data.lmdb", "H-adsorption LMDB to build (OC20 IS2RE schema)", path=True)
    references_path: str = setting(
        "data/references_${demo.potential}.json.gz", "energies of elements and competing phases to build", path=True
    )
    mp_entries_path: str = setting(
        "", "part references: Materials Project entries with structures (JSON), relaxed as further phases; empty: none", path=True
    )
    random_cif_dir: str = setting("data/random_decoration", "random-decoration baseline CIFs to build", path=True)
    known_cif_dir: str = setting("data/known_sheets", "CIFs of well-known sheets to build", path=True)
    baseline_cif_dir: str = setting(BASELINE_DIR, "CIFs of the baseline, another project's structures, to build", path=True)
    host_db_path: str = setting("", "parts hosts and snapshots: database of sheets, such as C2DB", path=True)
    host_lmdb_path: str = setting(
        "results/adsorption_hosts/data.lmdb", "part hosts: H-adsorption LMDB to build (OC20 IS2RE schema)", path=True
    )
    num_hosts: int = setting(600, "part hosts: sheets to relax", low=1)
    sites_per_host: int = setting(3, "part hosts: H sites per sheet", low=1)
    snapshot_lmdb_path: str = setting(
        "results/adsorption_snapshots/data.lmdb", "part snapshots: LMDB of unrelaxed H to build (same schema)", path=True
    )
    num_snapshot_hosts: int = setting(1500, "part snapshots: sheets", low=1)
    snapshots_per_host: int = setting(8, "part snapshots: geometries per sheet, one energy each", low=1)
    work_dir: str = setting("results/demo_work", "resumable intermediate results, one file per relaxed structure", path=True)
    potential: str = setting("sevennet-l3i5", "potential that relaxes everything", choices=POTENTIALS)
    potential_checkpoint: str = setting("", "checkpoint of that potential (MatterSim only)", path=True)
    num_monolayers: int = setting(1000, "prototype decorations to relax", low=1)
    num_adsorption: int = setting(805, "H-adsorption records to relax", low=1)
    num_random: int = setting(32, "random-decoration CIFs", low=1)
    workers: int = setting(2, "worker processes, one thread each", low=1)
    fmax_ev_per_angstrom: float = setting(0.05, "force threshold of the relaxations", low=1e-4)
    max_steps: int = setting(200, "step cap of the relaxations of sheets and phases", low=1)
    max_h_steps: int = setting(80, "step cap of the relaxations of H", low=1)


@dataclass(frozen=True)
class DimenetConfig:
    """Settings of DimeNet++ and its training (stage 1)."""

    lmdb_path: str = setting("data/demo_is2re/data.lmdb", "OC20 IS2RE LMDB: a file or a folder of *.lmdb", path=True)
    val_lmdb_path: str = setting("", "validation LMDB; empty: split by bulk formula", path=True)
    adsorbate: str = setting("H", "H: records with one H adatom; all: every record", choices=("H", "all"))
    checkpoint: str = setting("${run.output_dir}/dimenet/dimenet.pth", "model: written by stage 1, read by the judges", path=True)
    init_from: str = setting("", "checkpoint to start from: official OCP/fairchem DimeNet++ IS2RE, or of stage 1", path=True)
    dft_path: str = setting("data/h_on_2d_dft.db", "DFT ΔE_H towards which ΔE_H is corrected; empty: no correction", path=True)
    dft_teacher: str = setting(
        "auto",
        "potential that made the records, on whose own ΔE_H that correction is learnt; empty: on the network's (records of DFT); "
        "auto: as the file beside the records, or beside the checkpoint, says",
        choices=("auto", "", *POTENTIALS[:2]),
    )
    only_correction: bool = setting(False, "leave the weights, fit only the DFT correction of the checkpoint anew")
    preset: str = setting("small", "network size: small | oc20 (hidden 256, 6 Å, the published set-up)", choices=("small", "oc20"))
    ensemble_size: int = setting(3, "independently trained members; their spread is the uncertainty", low=1, high=32)
    epochs: int = setting(40, "passes over the training records", low=1)
    batch_size: int = setting(16, "records per step", low=1)
    loader_workers: int = setting(
        0, "processes that read records and build graphs ahead of time, for each training process; 0: that process itself", low=0
    )
    learning_rate: float = setting(2e-3, "peak learning rate", low=1e-8, high=1.0)
    warmup_epochs: float = setting(1.0, "linear warm-up, in epochs", low=0)
    lr_milestones: list[float] = setting([0.6, 0.8, 0.93], "fractions of the run at which the rate is multiplied by lr_gamma")
    lr_gamma: float = setting(0.3, "factor at each milestone (published: 0.1)", low=1e-4, high=1.0)
    weight_decay: float = setting(1e-5, "AdamW weight decay", low=0)
    ema_decay: float = setting(0.995, "exponential moving average of the weights", low=0, high=0.999999)
    grad_clip: float = setting(10.0, "largest gradient norm", low=1e-6)
    val_fraction: float = setting(0.1, "share of bulk formulas for validation", low=0.01, high=0.5)
    test_fraction: float = setting(0.1, "share of bulk formulas for the final test", low=0.01, high=0.5)
    relaxed_input_share: float = setting(0.25, "share of training inputs that show the relaxed geometry", low=0, high=1)
    train_on_unconverged: bool = setting(False, "train on records whose relaxation did not converge too; never measure on them")
    target_abs_max_ev: float = setting(10.0, "records with |y_relaxed| above this are dropped and counted", low=0.1)


@dataclass(frozen=True)
class DatasetConfig:
    """Settings of the data set (stage 2)."""

    db_path: str = setting("data/demo_c2db.db", "C2DB as an ASE database, or its folder tree of structure.json files", path=True)
    processed_dir: str = setting("${run.output_dir}/processed", "where train.pt, val.pt and test.pt go", path=True)
    max_atoms: int = setting(20, "larger cells are dropped and counted", low=1)
    max_thickness_angstrom: float = setting(12.0, "thicker sheets are dropped and counted", low=1)
    max_e_hull_ev: float = setting(2.0, "rows further above the hull are dropped and counted (eV/atom)", low=0)
    clash_factor: float = setting(0.7, "smallest distance over the sum of covalent radii", low=0.1, high=1.2)
    h_image_distance_angstrom: float = setting(7.0, "smallest distance between periodic images of H", low=2.0)
    her_correction_ev: float = setting(0.27, "ΔG_H − ΔE_H (0.24 is the other common choice)", low=-1, high=1)
    synth_e_hull_max_ev: float = setting(0.05, "synthesizable at or below, where no experiment is on record (eV/atom)", low=0)
    unsynth_e_hull_min_ev: float = setting(0.2, "not synthesizable above (eV/atom)", low=0)
    val_fraction: float = setting(0.1, "share of reduced formulas for validation", low=0.01, high=0.5)
    test_fraction: float = setting(0.1, "share of reduced formulas for the final test", low=0.01, high=0.5)
    label_batch_size: int = setting(32, "H-on-sheet configurations per DimeNet++ call", low=1)
    label_fraction: float = setting(1.0, "share of formulas that get ΔG_H labels; the others teach everything else", low=0, high=1)
    label_source: str = setting(
        "dimenet",
        "who labels: dimenet, or potential (that of section evaluation, corrected from DFT; better, and hundreds of times slower)",
        choices=("dimenet", "potential"),
    )
    label_max_atoms: int = setting(0, "largest cell that gets a ΔG_H label; 0: all", low=0)
    label_max_e_hull_ev: float = setting(10.0, "rows further above the hull get no ΔG_H label (eV/atom)", low=0)
    label_more: int = setting(
        0, "further rows to label, whatever label_fraction: those that label_model puts nearest to generation.target_delta_g", low=0
    )
    label_model: str = setting("", "denoiser of stage 3 whose heads say so: a round of active learning", path=True)
    judged_dirs: list[str] = setting(
        [], "folders of stage 5 (metrics.csv, relaxed.extxyz) whose judged candidates join the training split", path=True
    )
    max_rows: int = setting(0, "rows to read; 0: all", low=0)


@dataclass(frozen=True)
class DenoiserConfig:
    """Settings of the denoiser and its training (stage 3)."""

    checkpoint: str = setting(
        "${run.output_dir}/denoiser/best_diffusion_model.pth", "trained model: written by stage 3, read by stage 4", path=True
    )
    init_from: str = setting("", "checkpoint of stage 3 of the same size whose weights training starts from", path=True)
    train_only: str = setting(
        "all",
        "what is trained: all, or heads (of init_from, whose noise estimates and scales stay as they are)",
        choices=("all", "heads"),
    )
    labelled_share: float = setting(0.0, "least share of each batch that has a ΔG_H label, drawn with repetition", low=0, high=1)
    hidden_channels: int = setting(96, "width of the node states", low=8)
    vector_channels: int = setting(32, "in-plane vectors (and z-odd numbers) per node", low=1)
    num_layers: int = setting(4, "message-passing layers of the trunk, which never sees the conditions", low=1)
    num_noise_layers: int = setting(1, "further layers of the noise branch, which sees the conditions", low=0)
    num_rbf: int = setting(24, "radial basis functions", low=4)
    cutoff_angstrom: float = setting(6.0, "edge cutoff on the noised sheet", low=2.0)
    max_neighbors: int = setting(20, "edges kept per atom, nearest first, whole shells", low=2)
    num_timesteps: int = setting(1000, "diffusion steps T", low=10)
    beta_start: float = setting(1e-4, "β at t=1 (heights and lattice)", low=1e-8, high=0.5)
    beta_end: float = setting(0.02, "β at t=T (heights and lattice)", low=1e-8, high=0.999)
    sigma_min: float = setting(0.01, "σ at t=1 (fractional coordinates)", low=1e-5)
    sigma_max: float = setting(0.5, "σ at t=T (fractional coordinates)", low=1e-3)
    p_uncond: float = setting(0.15, "condition dropout for classifier-free guidance", low=0, high=1)
    weight_frac: float = setting(1.0, "weight of the in-plane coordinate term", low=0)
    weight_height: float = setting(1.0, "weight of the height term", low=0)
    weight_lattice: float = setting(1.0, "weight of the lattice term", low=0)
    lambda_delta_g: float = setting(0.2, "λ1, |ΔG_H error|", low=0)
    lambda_e_hull: float = setting(0.2, "λ2, squared E_hull error", low=0)
    lambda_synth: float = setting(0.1, "λ3, binary cross-entropy of P_synth", low=0)
    symmetric_share: float = setting(0.7, "share of training sheets that are noised within their symmetry", low=0, high=1)
    max_steps: int = setting(4000, "optimiser steps", low=1)
    batch_size: int = setting(64, "sheets per step", low=1)
    learning_rate: float = setting(1e-3, "peak learning rate (cosine with warm-up)", low=1e-8, high=1.0)
    warmup_steps: int = setting(200, "linear warm-up", low=0)
    weight_decay: float = setting(1e-5, "AdamW weight decay", low=0)
    ema_decay: float = setting(0.999, "exponential moving average of the weights", low=0, high=0.999999)
    grad_clip: float = setting(1.0, "largest gradient norm", low=1e-6)
    eval_every: int = setting(250, "steps between validations (and resume points)", low=1)


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of sampling and export (stage 4)."""

    num_structures: int = setting(32, "CIFs to write", low=1)
    output_dir: str = setting("${run.output_dir}/generated_cifs", "folder of the CIFs", path=True)
    shard: str = setting("", "sample one of n parts, such as 3/8; merge/8 puts the eight together; empty: everything")
    target_delta_g: float = setting(0.0, "target ΔG_H (eV)", low=-5, high=5)
    target_e_hull: float = setting(0.0, "target E_hull condition (eV/atom)", low=0, high=2)
    guidance_scale: float = setting(1.0, "η, strength of the property-gradient guidance; 0 switches it off", low=0)
    cfg_scale: float = setting(1.5, "w, classifier-free guidance; 0: unconditional, 1: conditional", low=0)
    weight_e_hull: float = setting(1.0, "c1, weight of relu(E_hull) in the guidance target", low=0)
    weight_synth: float = setting(0.2, "c2, weight of −log P_synth in the guidance target", low=0)
    guidance_clip: float = setting(1.0, "largest guidance step per structure, in units of the step's own noise", low=0)
    max_family_share: float = setting(
        0.15, "largest share of one family, or one template, among structures that guidance chose; 1: any", low=0.001, high=1
    )
    max_per_composition: int = setting(
        1, "structures of one composition among those that guidance chose, while there are others; 0: any number", low=0
    )
    search_rounds: int = setting(
        2,
        "times that guidance changes the best recipes so far and adds the outcome to the choice: by noise on a kind of atoms or on "
        "the arrangement and the reverse process, in a screening by replacing a further element",
        low=0,
    )
    num_steps: int = setting(50, "reverse steps (a strided subset of T)", low=2)
    corrector_steps: int = setting(1, "Langevin corrector steps per reverse step", low=0)
    corrector_snr: float = setting(0.4, "signal-to-noise ratio of the corrector", low=0)
    batch_size: int = setting(32, "sheets sampled at a time", low=1)
    recipes: list[str] = setting(
        [], "formulas (MoS2) or families (2H-MX2: Mo W | S Se); empty: elements are drawn on the arrangements of the training set"
    )
    elements_checkpoint: str = setting("weights/elements.pth", "network that draws them, and the arrangements", path=True)
    element_draws: int = setting(
        150, "sheets drawn for each structure asked for, to choose from under guidance; recipes in a screening", low=1
    )
    elements: list[str] = setting(
        [], "elements of recipes that are not given in generation.recipes; empty: any that was trained on"
    )
    exclude_elements: list[str] = setting(HAZARDS, "elements that these recipes never hold: toxic or radioactive")
    max_soluble_share: float = setting(
        0.1,
        "largest share of halides and of compounds of alkali metals among structures that guidance chose; 1: any",
        low=0,
        high=1,
    )
    max_recipe_atoms: int = setting(8, "largest cell of recipes that are not given in generation.recipes", low=1)
    template_share: float = setting(
        1.0, "share of sheets sampled within the symmetry of their recipe's template; the others are free", low=0, high=1
    )
    start: str = setting(
        "crystal",
        "where sheets of a formula start: crystal (known ones of stage 2, else of dataset.db_path, elements replaced) or noise; "
        "screening: no diffusion, prototypes and crystals of the training set with other elements are the recipes, and all start "
        "from crystals",
        choices=("noise", "crystal", "screening"),
    )
    ranker_checkpoint: str = setting("weights/ranker.pth", "trees that rank these; empty: the nearest come first", path=True)
    refiner_checkpoint: str = setting(
        "weights/refiner.pth", "network that moves atoms and cell to where the elements want them", path=True
    )
    refine_steps: int = setting(2, "steps by which it moves sheets that start from crystals, their symmetry kept", low=0, high=20)
    refine_samples: bool = setting(False, "whether it moves sheets sampled from noise as well")
    oversample: float = setting(3.0, "sheets sampled per CIF under guidance, which draws from the valid ones", low=1.0, high=100.0)
    prefilter: bool = setting(
        True,
        "whether the judges of section evaluation look at these first, all but the costly ones, and the best chances of a new hit "
        "are written, not dissolved by water and conducting ones first; not of generation.recipes",
    )
    max_thickness_angstrom: float = setting(12.0, "sheets thicker than this are rejected", low=1)
    vacuum_angstrom: float = setting(20.0, "cell height − thickness at export", low=15.0)
    clash_factor: float = setting(0.7, "smallest distance over the sum of covalent radii", low=0.1, high=1.2)
    symprec_angstrom: float = setting(0.1, "tolerance of the symmetrisation", low=0)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark of the generator."""

    parts: list[str] = setting(["all"], "all, or some of csp, ladder, relaxed, diffusion, generation, guidance, search, hull")
    output_dir: str = setting("${run.output_dir}/benchmark", "where scores, samples and figures go", path=True)
    csp_rows: int = setting(
        150, "parts csp, ladder, relaxed, diffusion, hull: held-out sheets, drawn at random from the test split", low=1
    )
    csp_samples: int = setting(20, "parts csp and ladder: samples per sheet", low=1)
    csp_max_atoms: int = setting(12, "parts csp, ladder, relaxed, diffusion, hull: largest cell", low=1)
    ladder_rows: int = setting(
        450, "part ladder: first held-out sheets with csp_samples predictions each; the others get one", low=1
    )
    ladder_diffusion_rows: int = setting(
        100, "parts ladder, relaxed, diffusion: first held-out sheets that the diffusion is sampled for", low=1
    )
    generation_structures: int = setting(1000, "part generation: structures", low=2)
    guidance_scales: list[float] = setting([0.0, 0.3, 1.0], "part guidance: guidance scales η, at w = 0")
    cfg_scales: list[float] = setting([2.0], "part guidance: classifier-free scales w, at η = 0")
    num_structures: int = setting(256, "part guidance: structures at each setting", low=2)
    searches: list[str] = setting([], "part search: names of the ways of choosing to compare; empty: all")
    search_structures: int = setting(64, "part search: structures by each way of choosing", low=2)
    judge_checkpoint: str = setting(
        "weights/dimenet_second.pth", "part guidance: DimeNet++ that judges, not the one that labelled", path=True
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the judges, the report and the figures (stages 5 and 6)."""

    cif_dir: str = setting("${generation.output_dir}", "folder of CIFs to judge", path=True)
    output_dir: str = setting("${run.output_dir}", "where metrics, report and figures go", path=True)
    shard: str = setting(
        "", "judge one of n parts (stage 6 too), such as 3/8; merge/8 puts the eight together and reports; empty: everything"
    )
    unguided_cif_dir: str = setting("${run.output_dir}/controls/unguided_cifs", "control: same model, no guidance", path=True)
    random_cif_dir: str = setting("data/random_decoration", "control: random prototype decoration", path=True)
    known_cif_dir: str = setting("data/known_sheets", "control: sheets that every chemist knows", path=True)
    training_set: str = setting("data/demo_c2db.db", "database against which novelty is decided", path=True)
    known_db: list[str] = setting([], "further databases whose sheets are not novel, such as releases of C2DB", path=True)
    known_formulas_from: str = setting(
        "${denoiser.checkpoint}", "its training formulas are not novel unless training_set has them all; empty: off", path=True
    )
    potential: str = setting("sevennet-l3i5", "stability judge", choices=POTENTIALS)
    second_potential: str = setting(
        "sevennet-0", "its ΔE_H beside the judge's sharpens the DFT correction; empty: none", choices=("", *POTENTIALS[:2])
    )
    dft_geometry: str = setting(
        "sevennet-mf-0", "potential in whose minima DFT is asked; empty: the stability judge", choices=("", *POTENTIALS[:3])
    )
    band_gap: str = setting(
        "learnt", "band gap that sharpens the DFT corrections too, of sheets before H; empty: none", choices=("", "learnt")
    )
    band_gap_checkpoint: str = setting(
        "weights/band_gap.pth", "learnt PBE gap, which decides whether a sheet conducts; empty: no verdict", path=True
    )
    conductive_gap_ev: float = setting(0.5, "a sheet conducts up to this gap (eV)", low=0)
    potential_checkpoint: str = setting("", "checkpoint of that potential (MatterSim only)", path=True)
    references_path: str = setting("data/references_${evaluation.potential}.json.gz", "hull energies of that potential", path=True)
    synthesizability: str = setting("embedded", "synthesizability judge", choices=("embedded", "csllm"))
    embedded_checkpoint: str = setting("weights/synth_lm.pth", "embedded synthesizability model", path=True)
    csllm_path: str = setting("", "CSLLM: local folder or hub id")
    hull: str = setting(
        "combined",
        "whose E_above_hull counts: potential (with its phases), learnt (from PBE; where it can), both (their mean), combined "
        "(both and networks that learnt from PBE, averaged)",
        choices=("potential", "learnt", "both", "combined"),
    )
    hull_checkpoint: str = setting("weights/hull_${evaluation.potential}.pth", "learnt hull of that potential", path=True)
    hull_network: str = setting("weights/hull_network.pth", "networks of evaluation.hull: combined", path=True)
    hull_db: str = setting("", "database with ehull, such as C2DB, against which E_above_hull is checked; empty: not", path=True)
    hull_rows: int = setting(300, "rows of it that are relaxed for that", low=10)
    dft_truth_path: str = setting("data/h_on_2d_dft.db", "DFT ΔE_H with structures on which the HER judge is measured", path=True)
    dft_blind_path: str = setting("data/h_on_2d_blind.db", "further DFT ΔE_H that no fit has seen; empty: none", path=True)
    truth_table_path: str = setting("tests/data/her_truth.csv", "table of truth rows that name those structures", path=True)
    water: bool = setting(True, "how a sheet fares in water at pH 0, 7 and 14: ΔG_pbx and a verdict, which filter nothing")
    hazards: list[str] = setting(HAZARDS, "elements that are named as hazards: toxic or radioactive")
    leave_out_hazards: bool = setting(True, "whether candidates with such elements are left out of the finalists")
    max_price_usd_per_kg: float = setting(0.0, "price of the elements above which they are left out too; 0: any", low=0)
    phonons: bool = setting(True, "whether sheets near the hull are dynamically stable, by phonons and stiffness; filters nothing")
    dynamics_checkpoint: str = setting(
        "weights/dynamics.pth", "learnt part of that verdict; empty: phonons and stiffness alone decide", path=True
    )
    activity_checkpoint: str = setting(
        "weights/activity.pth", "trees by whose ΔG_H stage 4 chooses; empty: by heads and DimeNet++ alone", path=True
    )
    phonon_max_e_hull_ev: float = setting(0.2, "no phonons and exfoliation of sheets further above the hull (eV/atom)", low=0)
    phonon_max_atoms: int = setting(12, "no phonons and exfoliation of larger cells", low=1)
    exfoliation: bool = setting(True, "what it costs to peel such sheets (those that phonons are asked of) off a crystal of them")
    judged_before: list[str] = setting(
        ["data/verdicts"],
        "folders with verdicts of earlier runs (their cache): what the same judges said of the same file is not asked again",
        path=True,
    )
    relaxed_dir: str = setting(
        "${run.output_dir}/cache/relaxed",
        "what relaxations by the potential and fits to DFT gave, so that no process and no run repeats them; empty: not kept",
        path=True,
    )
    relax: bool = setting(True, "relax before judging")
    fmax_ev_per_angstrom: float = setting(0.05, "force threshold of the relaxation", low=1e-4)
    max_steps: int = setting(150, "step cap of the relaxation", low=0)
    potential_h_sites: int = setting(3, "best sites at which the potential relaxes H as well; 0: none", low=0)
    potential_h_max_e_hull_ev: float = setting(
        10.0, "the potential relaxes no H on sheets further above the hull, which can be no hit (eV/atom)", low=0
    )
    all_sites: int = setting(3, "candidates of each set, the first ones, for which H is relaxed at every site; 0: none", low=0)
    max_h_steps: int = setting(40, "step cap of those relaxations", low=1)
    more_h_steps: int = setting(120, "further steps where H has not come to rest by then; 0: none", low=0)
    max_atoms: int = setting(200, "larger cells are reported and not judged", low=1)
    min_vacuum_angstrom: float = setting(10.0, "vacuum a sheet must have", low=1)
    clash_factor: float = setting(0.7, "smallest distance over the sum of covalent radii", low=0.1, high=1.2)
    e_ref_ev: float = setting(0.0, "E_ref of Score_stab where no hull is known (eV/atom)")
    hit_delta_g_ev: float = setting(0.1, "hit: |ΔG_H| at most", low=0)
    hit_e_hull_ev: float = setting(0.1, "hit and metastable: E_above_hull at most (eV/atom)", low=0)
    bootstrap: int = setting(1000, "resamples of the 95 % intervals", low=10)
    top_k: int = setting(8, "candidates drawn in generated_structures.png", low=1)
    finalists: int = setting(3, "best candidates exported to output_dir/finalists, ready for DFT; 0: none", low=0)
    legacy_columns: bool = setting(True, "the earlier public baseline's scores beside ours, for comparison only")
    legacy_max_steps: int = setting(50, "step cap of its relaxation, positions only", low=0)
    workers: int = setting(2, "worker processes, one thread each; 0: none, a candidate that crashes ends the stage", low=0)


@dataclass(frozen=True)
class ExternalConfig:
    """Settings of somebody else's set (stage 6)."""

    cif_dir: str = setting(
        BASELINE_DIR,
        "your or anybody's structures: a folder of CIF, POSCAR, XYZ or ASE db files, or one such file",
        path=True,
    )
    output_dir: str = setting(
        "${run.output_dir}/external/${external.name}", "where their metrics, report and figures go", path=True
    )
    name: str = setting("auto", "their name in tables and figures; auto: baseline for data/baseline, else external")


@dataclass(frozen=True)
class SynthLMConfig:
    """Settings of the embedded synthesizability model and its training."""

    db_path: str = setting("${dataset.db_path}", "monolayer database with ehull", path=True)
    checkpoint: str = setting("${run.output_dir}/synth_lm/synth_lm.pth", "trained model", path=True)
    more_db_paths: list[str] = setting([], "further databases of the same kind, such as another release of C2DB", path=True)
    max_rows: int = setting(0, "rows to use, drawn at random; 0: all", low=0)
    trees: int = setting(300, "boosted trees", low=1)
    learning_rate: float = setting(0.06, "weight of each tree", low=1e-4, high=1.0)
    max_leaf_nodes: int = setting(24, "leaves of a tree", low=2)
    reported_weight: float = setting(5.0, "weight of a sheet whose synthesis is on record, beside 1 of another", low=1)
    min_element_rows: int = setting(3, "the model abstains on elements of fewer training sheets", low=1)


@dataclass(frozen=True)
class Config:
    """All sections."""

    run: RunConfig = field(default_factory=RunConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    dimenet: DimenetConfig = field(default_factory=DimenetConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    refiner: RefinerTrainingConfig = field(default_factory=RefinerTrainingConfig)
    elements: ElementTrainingConfig = field(default_factory=ElementTrainingConfig)
    ranker: RankerConfig = field(default_factory=RankerConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    external: ExternalConfig = field(default_factory=ExternalConfig)
    synth_lm: SynthLMConfig = field(default_factory=SynthLMConfig)
    learnt_hull: LearntHullConfig = field(default_factory=LearntHullConfig)
    hull_network: HullNetworkConfig = field(default_factory=HullNetworkConfig)
    band_gap: BandGapConfig = field(default_factory=BandGapConfig)
    activity: ActivityConfig = field(default_factory=ActivityConfig)
    phonon_benchmark: PhononBenchmarkConfig = field(default_factory=PhononBenchmarkConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)


def section_fields(section: str) -> tuple[dataclasses.Field, ...]:
    """Return the settings of one section, in the order of ``config.yaml``."""
    section_class = {f.name: f.default_factory for f in dataclasses.fields(Config)}[section]
    return dataclasses.fields(section_class)
