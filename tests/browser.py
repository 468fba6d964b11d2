"""Opens a report in a headless Chromium, for tests of the page."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from evaluation import structure_viewer
from pipeline.files import write_json

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NARROWEST_WINDOW = 500  # px; a narrower page is shown in a frame
FRAME = """<!doctype html><body style="margin:0"><script>
addEventListener("message", event => Object.assign(document.body.dataset, event.data));
</script><iframe src="{name}" style="border:0;width:{width}px;height:900px"></iframe></body>"""

browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def run_in_page(folder: Path, script: str, *, width: int = 1200, fragment: str = "", dark: bool = False) -> dict[str, str]:
    """Open the report, run a script in it and return the ``data-`` attributes of the body that it leaves.

    The page keeps its own policy; only the script of the test is added to it.
    """
    source = (folder / "report.html").read_text(encoding="utf-8")
    if script:
        script += ";parent.postMessage({...document.body.dataset}, '*');"
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = r'(<meta http-equiv="Content-Security-Policy"[^>]*script-src) '
        source, count = re.subn(policy, rf"\1 &#39;sha256-{digest}&#39; ", source)
        assert count == 1
        source = source.replace("</body>", f"<script>{script}</script></body>")
    copy = folder / "tried.html"
    copy.write_text(source, encoding="utf-8")
    if width < NARROWEST_WINDOW:
        (folder / "frame.html").write_text(FRAME.format(name=copy.name + fragment, width=width), encoding="utf-8")
        copy, fragment = folder / "frame.html", ""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--window-size={max(width, NARROWEST_WINDOW)},900", f"--user-data-dir={folder / 'chromium'}"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command += ["--virtual-time-budget=3000"] if copy.name == "frame.html" else []
    command += ["--dump-dom", copy.as_uri() + fragment]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    body = re.search(r"<body([^>]*)>", done.stdout)
    assert body, done.stdout[:500] + done.stderr[-2000:]
    return {name: html.unescape(value) for name, value in re.findall(r'data-([a-z-]+)="([^"]*)"', body[1])}


# Types into the search of a page, and leaves the milliseconds since the page was asked for.
SEARCH = """document.getElementById("table-search").value = "gen_000";
    document.getElementById("table-search").dispatchEvent(new Event("input"));
    document.body.dataset.done = Math.round(performance.now());"""


def write_large_report(source: Path, name: str, folder: Path, number: int) -> set[str]:
    """Write a report of many rows, copies of the material ``name`` of a report, and return the ids of the best 1,000."""
    content = json.loads(source.read_text(encoding="utf-8"))
    row, stored = next(row for row in content["candidates"] if row["id"] == name), content["structures"][name]
    rng = np.random.default_rng(0)
    content["candidates"] = [
        {**row, "id": f"gen_{k:05d}", "p_hit": p, "delta_g_ev": p - 0.5, "status": "ΔG_H of the potential: not asked, too unstable"}
        for k, p in enumerate(rng.random(number).tolist())
    ]
    content["n_candidates"] = number
    two = structure_viewer.decode(stored).repeat((2, 1, 1))
    best = {row["id"] for row in sorted(content["candidates"], key=lambda row: (-row["p_hit"], row["id"]))[:1000]}
    content["structures"] = dict.fromkeys(best, {**stored, **structure_viewer.encode(two)})
    write_json(folder / "report.json", content)
    (folder / "metrics.csv").write_text("id\n")
    return best
