"""The benchmark of messages: both ways of the same networks, which compute the same."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from scripts import benchmark_messages


def test_both_ways_are_timed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "messages.json"
    monkeypatch.setattr(benchmark_messages, "SIZES", (2,))
    monkeypatch.setattr(benchmark_messages, "SHEETS", 3)
    monkeypatch.setattr(sys, "argv", ["benchmark_messages", "--repeats", "2", "--output", str(path)])
    threads = torch.get_num_threads()
    try:
        benchmark_messages.main()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(path.read_text())["sizes"]["2"]
    assert list(rows) == ["noise", "training", "moves", "elements", "all pairs"]
    assert "2 atoms, noise: " in capsys.readouterr().out
    for row in (rows[name] for name in ("noise", "training", "moves", "elements")):
        assert row["speed_up"] == pytest.approx(row["operations_seconds"] / row["loops_seconds"], rel=0.05)
    training = rows["training"]
    rates = training["loops_gflops"] / training["operations_gflops"]
    assert rates == pytest.approx(training["speed_up"], rel=0.1) and 0.1 < training["share_executed"] < 0.8
    share = rows["noise"]["loops_seconds"] / rows["all pairs"]["operations_seconds"]
    assert rows["noise"]["of_all_pairs"] == pytest.approx(share, rel=0.05) and "loops_seconds" not in rows["all pairs"]


def test_the_ways_differ_and_agree(monkeypatch):
    monkeypatch.setattr(benchmark_messages, "SHEETS", 3)
    parts = benchmark_messages.works(4)
    calls = []
    for module, name in (("sheet_layers", "message_sums"), ("sheet_trunk", "add_terms")):
        loops = getattr(sys.modules[f"networks.{module}"], name)
        monkeypatch.setattr(f"networks.{module}.{name}", lambda *given, loops=loops: calls.append(1) or loops(*given))
    for name in ("noise", "moves", "elements"):
        work, found = parts[name][0], []
        for way in ("loops", "operations"):
            calls.clear()
            if way == "loops":
                found.append(work())
            else:
                with benchmark_messages.by_operations():
                    found.append(work())
            assert bool(calls) is (way == "loops")
        values = [vars(result) if hasattr(result, "__dict__") and not torch.is_tensor(result) else {"": result} for result in found]
        for key in values[0]:
            torch.testing.assert_close(values[0][key], values[1][key], rtol=1e-3, atol=1e-4)
