"""Labelling sheets with ΔG_H, sites per second: sheets sharing batches, with their sites cached, and one at a time, in one run."""

from pathlib import Path

import pytest
import torch
from ase.db import connect

from energetics.hydrogen import HydrogenPredictor
from energetics.site_cache import SiteStore
from pipeline.settings import DatasetConfig

ROOT = Path(__file__).resolve().parent.parent.parent
GROUP = "ΔG_H of 48 sheets, all sites"


@pytest.fixture(scope="module")
def judge():
    torch.set_num_threads(1)
    return HydrogenPredictor.load(ROOT / "weights" / "dimenet.pth")


@pytest.fixture(scope="module")
def sheets():
    return [row.toatoms() for row in connect(ROOT / "data" / "demo_c2db.db").select()][::19][:48]


def run(benchmark, function):
    results = benchmark.pedantic(function, rounds=2, warmup_rounds=1)
    sites = sum(len(result.sites) for result in results)
    benchmark.extra_info["sites"] = sites
    benchmark.extra_info["sites_per_second"] = sites / benchmark.stats.stats.mean
    return results


@pytest.mark.benchmark(group=GROUP)
def test_sharing_batches(benchmark, judge, sheets):
    run(benchmark, lambda: list(judge.predict_many(sheets, DatasetConfig())))


@pytest.mark.benchmark(group=GROUP)
def test_sharing_batches_with_cached_sites(benchmark, judge, sheets, tmp_path):
    settings = DatasetConfig()
    site_cache = SiteStore(tmp_path / "sites.jsonl", settings.h_image_distance_angstrom)
    run(benchmark, lambda: list(judge.predict_many(sheets, settings, site_cache)))


@pytest.mark.benchmark(group=GROUP)
def test_one_at_a_time(benchmark, judge, sheets):
    run(benchmark, lambda: [judge.predict_sheet(sheet, DatasetConfig()) for sheet in sheets])
