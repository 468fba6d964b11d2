"""What the tests of bad input share: a plain good CIF, ways to spoil it, and how a run is judged to have failed properly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb
import numpy as np
import pytest
import simple_judges as simple
import torch
from ase import Atoms
from simple_judges import CELL, GOOD, LOOP, SITES  # noqa: F401  (the tests take them from here)

from evaluation import candidate, judging
from pipeline import loading
from pipeline.cli import run_stage
from pipeline.loading import load_config
from pipeline.settings import Config, EvaluationConfig

SETTINGS = EvaluationConfig(bootstrap=10)


def judge(path: Path, settings: EvaluationConfig = SETTINGS) -> candidate.CandidateResult:
    """The row of one CIF by the simple judges; whatever is in the file, no exception leaves this."""
    return candidate.CandidateResult(**judging.judge_candidate(path, simple.judges(), settings)["row"])


def judged(tmp_path: Path, content: str | bytes, name: str = "x.cif") -> candidate.CandidateResult:
    """The row of a CIF with this content."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return judge(path)


def cif_of(cell: Any, numbers: Any, scaled: Any) -> str:
    """A CIF in space group P 1 with ten digits, so that only the description differs and not the crystal."""
    symbols = Atoms(numbers=numbers).get_chemical_symbols()
    lengths_angles = Atoms(cell=cell).cell.cellpar()
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = ["data_x", *(f"_cell_{name} {value:.10f}" for name, value in zip(names, lengths_angles, strict=True))]
    lines += ["_symmetry_space_group_name_H-M 'P 1'", *LOOP.split()]
    lines += [f"{s}{k} {s} {x:.10f} {y:.10f} {z:.10f} 1" for k, (s, (x, y, z)) in enumerate(zip(symbols, scaled, strict=True))]
    return "\n".join(lines) + "\n"


def cif_of_atoms(atoms: Atoms) -> str:
    """``cif_of`` of ASE atoms, not wrapped into the cell."""
    return cif_of(atoms.cell.array, atoms.numbers, np.linalg.solve(atoms.cell.array.T, atoms.positions.T).T)


def one_line(capsys: pytest.CaptureFixture, action: Callable[[Config], Any], arguments: list[str]) -> tuple[int, str]:
    """Exit code and message of a stage; fails where the message is not exactly one short line without a traceback."""
    capsys.readouterr()
    load = load_config if arguments else _defaults  # reading settings takes a tenth of a second
    with mock.patch.object(loading, "load_config", load):
        code = run_stage(action, "doc", ("run",), arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and not re.search(r"\[\d\d:\d\d.*\]$", line)]
    assert code in (1, 2) and len(lines) == 1, (code, lines)
    assert "Traceback" not in lines[0] and len(lines[0]) < 1000
    return code, lines[0]


def _defaults(*_: Any) -> Config:
    return Config()


def is_short(status: str) -> bool:
    """A status fit for one cell of a table: one line, printable, without the innards of Python."""
    innards = ("Traceback", "object at 0x", "np.float64", "NoneType")
    return bool(status) and status.isprintable() and len(status) < 400 and not any(word in status for word in innards)


class Hostile:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def raw_lmdb(path: Path, items: dict[bytes, bytes]) -> Path:
    """An LMDB file of these keys and values."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 26, lock=False)
    with environment.begin(write=True) as transaction:
        for key, value in items.items():
            transaction.put(key, value)
    environment.close()
    return path


def record(**changes: Any) -> dict[str, Any]:
    """H on a copper monolayer in OC20's schema; keyword arguments replace attributes, None leaves one out."""
    values = {
        "pos": torch.tensor([[0.0, 0.0, 8.0], [1.3, 0.7, 9.0]]),
        "cell": torch.tensor([[[2.6, 0.0, 0.0], [1.3, 2.25, 0.0], [0.0, 0.0, 20.0]]]),
        "atomic_numbers": torch.tensor([29.0, 1.0]),
        "natoms": 2,
        "tags": torch.tensor([1, 2]),
        "fixed": torch.zeros(2),
        "sid": 7,
        "y_init": 0.1,
        "y_relaxed": -0.2,
        "pos_relaxed": torch.tensor([[0.0, 0.0, 8.0], [1.3, 0.75, 8.9]]),
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def pickled(**changes: Any) -> bytes:
    """A record as PyG stores it."""
    from torch_geometric.data import Data

    return pickle.dumps(Data(**record(**changes)))
