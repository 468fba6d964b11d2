"""How soon a report can be searched in Chromium: the best 1,000 of 10,000 materials, and the 32 of the committed run."""

from __future__ import annotations

import json

import pytest
from browser import SEARCH, browser, run_in_page, write_large_report

from evaluation.page import write_page
from pipeline.files import PROJECT_DIR

COMMITTED = PROJECT_DIR / "results" / "report.json"


@browser
@pytest.mark.benchmark(group="seconds until a report can be searched")
@pytest.mark.parametrize("materials", [32, 10_000])
def test_a_report_opens(benchmark, tmp_path, materials):
    content = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if materials == 32:
        (tmp_path / "report.json").write_bytes(COMMITTED.read_bytes())
    else:
        write_large_report(COMMITTED, next(iter(content["structures"])), tmp_path, materials)
    write_page(tmp_path)
    found = benchmark.pedantic(run_in_page, args=(tmp_path, SEARCH), rounds=3, warmup_rounds=1)
    benchmark.extra_info["milliseconds in the page"] = int(found["done"])
