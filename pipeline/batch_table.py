"""Writes the tables of relaxation, in batches and of its steps, and of networks in loops for the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.number_texts import formatted, table

MESSAGE_WAYS = ("operations_seconds", "loops_seconds")
KINDS = {"bare": "bare sheets, cell free", "hydrogen": "H on a supercell"}


def batches(content: Mapping[str, Any]) -> str:
    """Return how fast structures relax together, and one by one."""
    body = []
    for kind, found in content["kinds"].items():
        rows = {"ASE, one core": found["one_by_one_cpu_core"], "ASE, GPU": found["one_by_one"]}
        rows |= {f"{number} together, GPU": row for number, row in found["batches"].items()}
        for name, row in rows.items():
            gains = [f"{row[key]:.1f}" if key in row else "" for key in ("speed_up_over_cpu_core", "speed_up")]
            share = f"{row['share_within_5_mev_per_atom']:.0%}" if row.get("compared") else ""
            body.append(
                [
                    KINDS[kind],
                    name,
                    str(row["structures"]),
                    str(row["converged"]),
                    f"{row['seconds_per_structure']:.2f}",
                    *gains,
                    share,
                ]
            )
    head = ["", "how", "structures", "converged", "s a structure", "× a core", "× ASE on the GPU", "same energy"]
    return table(head, body)


def convolution(content: Mapping[str, Any]) -> str:
    """Return the seconds of a call by e3nn's convolution and by ours."""
    body = []
    for name, rows in content["potentials"].items():
        for row in rows.values():
            seconds = [formatted(row[f"{how}_seconds"], ".3f") for how in ("e3nn", "fast")]
            body.append([name, formatted(row["natoms"]), *seconds, formatted(row["speed_up"], ".1f")])
    return table(["potential", "atoms", "e3nn (s)", "ours (s)", "times as fast"], body)


def messages(content: Mapping[str, Any]) -> str:
    """Return the milliseconds of the networks of sheets by operations of PyTorch and by loops, and of one on all pairs of atoms."""
    names = {
        "noise": "noise, one estimate of the denoiser",
        "training": "its loss with gradients",
        "moves": "refiner",
        "elements": "denoiser of elements",
        "all pairs": "noise by messages between all pairs (CSPNet)",
    }
    body = []
    for size, rows in content["sizes"].items():
        for name, text in names.items():
            ways = [formatted(1000 * rows[name][key], ".1f") if key in rows[name] else "" for key in MESSAGE_WAYS]
            gain = formatted(rows[name]["speed_up"], ".1f") if "speed_up" in rows[name] else ""
            body.append([text, size, *ways, gain])
    return table(["work", "atoms a sheet", "PyTorch (ms)", "loops (ms)", "times as fast"], body)


def relaxation(content: Mapping[str, Any]) -> str:
    """Return the steps of relaxations of H and of sheets with other first curvatures and longest steps."""
    body = []
    for what, name in (("hydrogen", "H on a supercell"), ("sheets", "bare sheets, cell free")):
        for way in content[what]["ways"]:
            body.append(
                [
                    f"{name} ({content[what]['starts']})",
                    formatted(way["curvature_ev_per_angstrom2"], ".0f"),
                    formatted(way["max_step_angstrom"], ".2f"),
                    formatted(way["steps"]),
                    formatted(way["median_speed_up"], ".1f"),
                    formatted(way["not_converged"]),
                    formatted(way["in_other_minimum"]),
                    formatted(1000 * way["mean_energy_above_lowest_ev"], ".0f"),
                ]
            )
    head = ["", "curvature (eV/Å²)", "longest step (Å)", "steps, all", "× fewer, median", "not at rest", "in a higher minimum"]
    return table([*head, "above the lowest (meV, mean)"], body)


def stages(content: Mapping[str, Any]) -> str:
    """Return the seconds of the commands behind ``make run`` and ``make pipeline``."""
    body = []
    for target, found in content.items():
        for row in (*found["stages"], {"command": "", **found}):
            seconds = [formatted(row[name], ",.0f") for name in ("seconds", "processor_seconds")]
            body.append([f"`make {target}`", f"`{row['command']}`" if row["command"] else "all", *seconds])
    return table(["", "command", "seconds", "of the processors"], body)
