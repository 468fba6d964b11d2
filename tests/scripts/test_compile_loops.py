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

    passed = []
    for module, name in (("sheet_layers", "message_sums"), ("sheet_trunk", "add_terms")):
        loops = getattr(sys.modules[f"networks.{module}"], name)
        monkeypatch.setattr(
            f"networks.{module}.{name}", lambda *given, name=name, loops=loops: passed.append(name) or loops(*given)
        )
    monkeypatch.setattr(compile_loops, "load_potential", load)
    monkeypatch.setattr(sys, "argv", ["compile_loops"])
    compile_loops.main()
    settings = EvaluationConfig()
    assert asked == [settings.potential, settings.second_potential] and set(passed) == {"message_sums", "add_terms"}
    out = capsys.readouterr().out
    assert f"loops of {asked[1]} were not compiled: it is not installed" in out and "loops compiled in " in out
