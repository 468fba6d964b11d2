"""The benchmark of guidance on elements: its rows, and that its numbers are those of the sheets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from element_tables import flat_ab, mx2

from crystals.database import Row
from evaluation import element_guidance
from generation.sheet_table import pack
from models import load_denoiser
from pipeline.errors import StageError
from pipeline.loading import load_config
from scripts import benchmark_elements

SHARES = ("near_hull", "conducts", "dynamically_stable", "not_dissolved", "new", "chance_of_a_hit")


def test_each_strength_has_a_row_of_different_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(element_guidance, "SCALES", (0.0, 2.0))
    given = ["denoiser.checkpoint=weights/denoiser.pth", "benchmark.num_structures=4", "evaluation.bootstrap=20"]
    cfg = load_config(None, [*given, f"benchmark.output_dir={tmp_path}", "generation.max_recipe_atoms=4"])
    benchmark_elements.main(cfg)
    found = json.loads((tmp_path / "elements.json").read_text(encoding="utf-8"))
    assert [row["cfg_scale"] for row in found["guidance"]] == [0.0, 2.0, 1.5, 1.5, 1.5] and len(found["inputs"]) == 6
    ways = [(row["arrangements_guided"], len(row["told"])) for row in found["guidance"]]
    assert ways == [(True, 5), (True, 5), (False, 1), (False, 1), (False, 5)]
    for row in found["guidance"]:
        assert row["n"] == 4
        assert all(0 <= row["aggregates"][name]["value"] <= 1 for name in SHARES)
        assert all(a["low"] <= a["value"] <= a["high"] and a["n"] == 4 for a in row["aggregates"].values())
    assert found["guidance"][0]["aggregates"] != found["guidance"][1]["aggregates"], "the same seed, another strength"
    assert len({json.dumps(row["aggregates"]) for row in found["guidance"]}) == 5, "another question, another answer"
    monkeypatch.setattr(element_guidance, "SCALES", (2.0,))
    denoiser, content = load_denoiser(cfg.denoiser.checkpoint, "")
    content = content | {"formulas": []}
    again = element_guidance.element_guidance(cfg, denoiser, content)[0]["aggregates"]
    assert again["new"]["value"] == 1.0, "no composition is known"
    assert again["abs_delta_g_ev"]["value"] == pytest.approx(found["guidance"][1]["aggregates"]["abs_delta_g_ev"]["value"])
    assert np.isfinite(again["abs_delta_g_ev"]["value"])


def test_draws_without_guidance_are_compared_with_crystals_of_their_elements_and_size():
    given = ["denoiser.checkpoint=weights/denoiser.pth", "benchmark.num_structures=6", "generation.elements=[Mo,W,S,Se,Te]"]
    cfg = load_config(None, [*given, "generation.max_recipe_atoms=4"])
    alike = [mx2(metal, anion) for metal in (42, 74) for anion in (16, 34, 52)] * 2
    sheets = [*alike, mx2(22, 16), flat_ab(5, 7)]
    split = pack([Row(k, f"u{k}", sheet, "", "", 0.0, 0.0, 1.0) for k, sheet in enumerate(sheets)], {})
    _, content = load_denoiser(cfg.denoiser.checkpoint, "")
    found = element_guidance.unguided_distributions(cfg, content, split)
    assert found["crystals"] == len(alike) and 0 < found["n"] <= 6
    assert found["of"]["layer_group"]["floor"] == 0, "all crystals have one"
    assert 0 < found["of"]["layer_group"]["distance"] <= 1 and found["of"]["shortest_bond"]["distance"] > 0
    few = pack([Row(k, f"u{k}", sheet, "", "", 0.0, 0.0, 1.0) for k, sheet in enumerate(alike[:2])], {})
    with pytest.raises(StageError, match=r"^2 crystals of dataset\.processed_dir are too few to compare \d draws with$"):
        element_guidance.unguided_distributions(cfg, content, few)
