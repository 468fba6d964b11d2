"""The loops are compiled by the potentials and networks that a run asks for; a potential that is missing stops nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from ase.calculators.lj import LennardJones

from pipeline.errors import StageError
from pipeline.settings import EvaluationConfig
from scripts import compile_loops


def test_every_network_and_potential_sees_a_sheet(monkeypatch, capsys):
    asked = []

    def load(name):
        asked.append(name)
        if len(asked) == 2:
            raise StageError("it is not installed")
        return SimpleNamespace(calculator=LennardJones())

    seen = []
    parts = {name: (lambda name=name: seen.append(name), True) for name in ("noise", "training", "moves", "elements", "all pairs")}
    monkeypatch.setattr(compile_loops, "works", lambda size: parts)
    monkeypatch.setattr(compile_loops, "load_potential", load)
    monkeypatch.setattr(sys, "argv", ["compile_loops"])
    compile_loops.main()
    settings = EvaluationConfig()
    assert asked == [settings.potential, settings.second_potential] and seen == ["noise", "moves", "elements"]
    out = capsys.readouterr().out
    assert f"loops of {asked[1]} were not compiled: it is not installed" in out and "loops compiled in 0 s" in out
