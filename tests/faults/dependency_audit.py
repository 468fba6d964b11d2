"""Licences of what is installed, and its known vulnerabilities as far as an offline data set knows them.

    pip download --no-deps safety-db && unzip safety_db-*.whl
    python tests/faults/dependency_audit.py safety_db tests/data/dependency_audit.json

The data set ``safety-db`` is the newest advisory list that can be installed without a network service; its date is written into the
table. It says nothing about advisories that are younger: with a network, ``pip-audit -r requirements.txt`` does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
REQUIREMENTS = ("requirements.txt", "requirements-mattersim.txt", "requirements-dev.txt")


def pinned() -> dict[str, str]:
    """package -> version of the requirement files."""
    lines = [line for name in REQUIREMENTS for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    plain = [line.split("#")[0].split(";")[0].strip() for line in lines]  # neither remark nor platform
    pairs = [line.split("==") for line in plain if "==" in line]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def licence(metadata: Any) -> str:
    """The licence that a package states, in few words."""
    stated = metadata.get("License-Expression") or (metadata.get("License") or "").strip().split("\n")[0]
    classified = [c.rpartition("::")[2].strip() for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    if metadata.get("License-Expression"):
        return stated
    return ", ".join(classified) or (stated[:60] if stated and stated != "UNKNOWN" else "not stated")


def audit(advisories: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per installed package: version, licence, whether it is pinned, advisories known, and those that cover the version."""
    pins, rows = pinned(), []
    for found in importlib.metadata.distributions():
        name = canonicalize_name(found.metadata["Name"])
        known = advisories.get(name, [])
        version = found.version.split("+")[0]
        covering = [a["id"] for a in known if any(SpecifierSet(s).contains(version, prereleases=True) for s in a["specs"])]
        row = {"package": name, "version": version, "licence": licence(found.metadata), "pinned": name in pins}
        rows.append(row | {"advisories_known": len(known), "advisories_that_cover_it": covering})
    return sorted({row["package"]: row for row in rows}.values(), key=lambda row: (not row["pinned"], row["package"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("safety_db", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    from pipeline.files import write_json

    content = json.loads((arguments.safety_db / "insecure_full.json").read_text(encoding="utf-8"))
    moment = content.pop("$meta")["timestamp"]
    version = next((m[1] for p in arguments.safety_db.parent.glob("safety_db-*") if (m := re.search(r"-([\d.]+\d)", p.name))), "")
    rows = audit({canonicalize_name(name): entries for name, entries in content.items()})
    data = {"name": "safety-db", "version": version, "source": "github.com/pyupio/safety-db, CC BY-NC-SA 4.0"}
    data |= {"data_of": time.strftime("%Y-%m-%d", time.gmtime(moment)), "packages_with_advisories": len(content)}
    data["limit"] = "knows nothing younger than its date; pip-audit, with a network, does"
    about = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "python": sys.version.split()[0], "advisory_data": data}
    write_json(arguments.output, about | {"packages": rows})
    hit = [row for row in rows if row["advisories_that_cover_it"]]
    print(
        f"{len(rows)} packages, {sum(row['pinned'] for row in rows)} of them pinned, {len(hit)} with an advisory that covers them"
    )
    for row in hit:
        print(f"  {row['package']} {row['version']}: {', '.join(row['advisories_that_cover_it'])}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
