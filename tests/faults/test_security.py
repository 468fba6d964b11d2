"""What may never be in the source: code that runs what is in a file, a shell, or a download."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import dependency_audit
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("crystals", "energetics", "evaluation", "generation", "networks", "pipeline", "scripts")
SOURCES = sorted([*ROOT.glob("*.py"), *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))])
FORBIDDEN_CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "os.system": "starts a shell",
    "os.popen": "starts a shell",
    "pickle.load": "runs what is in a pickle",
    "pickle.loads": "runs what is in a pickle",
    "pickle.Unpickler": "runs what is in a pickle",
    "yaml.load": "runs what is in a YAML file",
    "yaml.unsafe_load": "runs what is in a YAML file",
    "tempfile.mktemp": "names a file that somebody else may make first",
    "np.load": "may unpickle",
    "pandas.read_pickle": "runs what is in a pickle",
}
FORBIDDEN_IMPORTS = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "telnetlib", "requests", "urllib3", "wget"}
ALLOWED = {("safe_pickle.py", "pickle.Unpickler")}  # the base of the allow-listed unpickler


def name_of(node: ast.expr) -> str:
    """Dotted name of what is called; begins with a question mark where that is a method of something computed."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def findings(path: Path, text: str) -> list[str]:
    """One line for every place that may not be there."""
    found = []
    for node in ast.walk(ast.parse(text)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{where}: imports {module}" for module in modules if module.split(".")[0] in FORBIDDEN_IMPORTS]
            if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "os"):
                hidden = {f"{node.module}.{alias.name}" for alias in node.names} & set(FORBIDDEN_CALLS)
                found += [f"{where}: imports {name}" for name in sorted(hidden)]
        if isinstance(node, ast.ClassDef):
            bases = {name_of(base) for base in node.bases} & {"pickle.Unpickler", "Unpickler"}
            found += [f"{where}: derives from {base}" for base in bases if (path.name, base) not in ALLOWED]
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        keywords = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else "computed" for k in node.keywords}
        refuses_pickles = name == "np.load" and "allow_pickle" in keywords and keywords["allow_pickle"] is False
        if name in FORBIDDEN_CALLS and not refuses_pickles:
            found.append(f"{where}: {name} {FORBIDDEN_CALLS[name]}")
        if name == "torch.load" and keywords.get("weights_only") is not True:
            found.append(f"{where}: torch.load without weights_only=True")
        if keywords.get("shell", False) is not False:
            found.append(f"{where}: {name} with a shell")
        if keywords.get("trust_remote_code", False) is not False:
            found.append(f"{where}: {name} trusts remote code")
        if keywords.get("allow_pickle", False) is not False:
            found.append(f"{where}: {name} allows pickles")
        carries_code = name.endswith("from_pretrained") and name != "PeftModel.from_pretrained"  # adapters are weights alone
        if carries_code and "trust_remote_code" not in keywords and None not in keywords:
            found.append(f"{where}: {name} does not say trust_remote_code=False")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                named = isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "shell", "allow_pickle")
                if named and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{path.name}:{node.lineno}: {key.value} is not False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_a_file_is_ever_run(path):
    assert findings(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system('true')",
        "from os import system",
        "import subprocess\nsubprocess.run('true', shell=True)",
        "options = {'shell': True}",
        "import torch\ntorch.load('x.pth')",
        "import torch\ntorch.load('x.pth', weights_only=False)",
        "import pickle\npickle.loads(b'')",
        "from pickle import loads",
        "import pickle\nclass Mine(pickle.Unpickler): pass",
        "import numpy as np\nnp.load('x.npy', allow_pickle=True)",
        "AutoModel.from_pretrained('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "options = {'trust_remote_code': True}",
        "eval('1')",
        "import joblib",
    ],
)
def test_each_of_them_would_be_found(text):
    assert findings(Path("x.py"), text)


def test_the_unpickler_is_the_allow_listed_one():
    """The one class that unpickles refuses everything but an allow-list."""
    text = (ROOT / "pipeline" / "safe_pickle.py").read_text(encoding="utf-8")
    (unpickler,) = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef) and n.name == "_SafeUnpickler"]
    methods = {n.name for n in unpickler.body if isinstance(n, ast.FunctionDef)}
    assert "find_class" in methods


def test_the_committed_audit_is_of_the_pinned_versions():
    found = json.loads((ROOT / "tests" / "data" / "dependency_audit.json").read_text(encoding="utf-8"))
    rows = {row["package"]: row for row in found["packages"]}
    assert {name: rows[name]["version"] for name in dependency_audit.pinned()} == dependency_audit.pinned()
    assert all(row["licence"] and row["advisories_that_cover_it"] == [] for row in rows.values())
    assert found["advisory_data"]["version"] and found["advisory_data"]["data_of"]


def test_an_advisory_that_covers_a_version_is_found():
    rows = dependency_audit.audit({"numpy": [{"id": "x-1", "specs": ["<99"]}, {"id": "x-2", "specs": ["<1.0", ">=98"]}]})
    (numpy,) = [row for row in rows if row["package"] == "numpy"]
    assert numpy["advisories_known"] == 2 and numpy["advisories_that_cover_it"] == ["x-1"] and numpy["pinned"]
