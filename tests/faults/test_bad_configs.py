"""Settings that cannot be used: one line, exit code 2, before any work starts."""

from __future__ import annotations

import pytest
from corpus import one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, StageError
from pipeline.files import PROJECT_DIR
from pipeline.loading import load_config
from pipeline.settings import Config, DenoiserConfig, section_fields


def never(cfg: Config) -> None:
    raise AssertionError("the stage was started")


OVERRIDES = {
    "run.sede=1": "sede",
    "rnu.seed=1": "rnu",
    "run.seed": "expected section.key=value",
    "seed=1": "expected section.key=value",
    "=1": "expected section.key=value",
    "run.=1": "run",
    ".seed=1": "Key ''",
    "run..seed=1": "run",
    "run.seed.x=1": "run.seed",
    "run.seed=": "run.seed",
    "run.seed=null": "run.seed",
    "run.seed=one": "run.seed",
    "run.seed=1.5": "run.seed",
    "run.seed=1=2": "run.seed",
    "run.seed=true": "run.seed",
    "run.seed=[1]": "run.seed",
    "run.seed={a: 1}": "run.seed",
    "run.seed=.nan": "run.seed",
    "run.seed=-1": "at least 0",
    "run.seed=4294967296": "at most 4294967295",
    "run.seed=99999999999999999999999": "at most 4294967295",
    "run.seed=*x": "cannot read",
    "run.seed=!!python/object/apply:os.system ['true']": "cannot read",
    "run.threads=1000000000": "at most 1024",
    "run.device=tpu": "run.device",
    "run.device=cuda:99999999999": "run.device",
    "run.device=cuda:\u00b2": "run.device",
    "run.device=cuda:-1": "run.device",
    "run.output_dir=": "run.output_dir: name a folder",
    "evaluation.output_dir=": "evaluation.output_dir: name a folder",
    "run.output_dir={a: b}": "run.output_dir",
    "run.output_dir=${run.output_dir}": "Recursive",
    "run.output_dir=${evaluation.output_dir}": "Recursive",
    "run.output_dir=${nothing}": "nothing",
    "run.output_dir=${oc.env:NO_SUCH_VARIABLE}": "NO_SUCH_VARIABLE",
    "run.output_dir=${run.seed": "cannot read",
    "run.output_dir=~no_such_user_here/x": "no such home folder",
    "run.output_dir=a\0b": "cannot read",
    "demo.parts=all": "demo.parts",
    "demo.parts=[nothing]": "unknown part",
    "dimenet.epochs=0": "at least 1",
    "dimenet.learning_rate=fast": "dimenet.learning_rate",
    "dimenet.learning_rate=0": "at least",
    "dimenet.learning_rate=.inf": "finite",
    "dimenet.lr_milestones=0.5": "dimenet.lr_milestones",
    "dimenet.lr_milestones=[half]": "dimenet.lr_milestones",
    "dimenet.lr_milestones=[.nan]": "finite",
    "dimenet.lr_milestones=[-1]": "fractions",
    "dimenet.preset=huge": "choose one of",
    "denoiser.beta_start=0.3": "below denoiser.beta_end",
    "evaluation.potential=[sevennet-0]": "evaluation.potential",
    "evaluation.e_ref_ev=.nan": "finite",
    "generation.prefilter=maybe": "generation.prefilter",
    "generation.recipes=MoS2": "generation.recipes",
    "generation.num_structures=1e9": "generation.num_structures",
    "dataset.clash_factor=5": "at most 1.2",
    "--seed=1": "unknown option",
    "-x": "unknown option",
    "--config=": "--config: no file at",
    "--config=/no/such.yaml": "--config: no file at",
    "--config": "needs a file name",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_that_cannot_be_used(capsys, override):
    code, line = one_line(capsys, never, [override])
    assert code == 2 and OVERRIDES[override] in line


FILES: dict[str, tuple[str | bytes, str]] = {
    "unknown section": ("nothing: {seed: 1}\n", "nothing"),
    "unknown key": ("run: {sede: 1}\n", "sede"),
    "number for a section": ("run: 5\n", "RunConfig"),
    "text for a section": ("run: fast\n", "RunConfig"),
    "list for a section": ("run: [1]\n", "RunConfig"),
    "section without keys": ("run:\n", "run"),
    "key without value": ("run: {seed: }\n", "run.seed"),
    "date for a number": ("run: {seed: 2020-01-01}\n", "run.seed"),
    "bytes for a path": ("run: {output_dir: !!binary aGVsbG8=}\n", "run.output_dir"),
    "key is a number": ("1: {seed: 1}\n", "1"),
    "key is a list": ("? [1, 2]\n: 3\n", "not readable YAML"),
    "key is null": ("run: {null: 1}\n", "not readable YAML"),
    "list at the top": ("- run\n", "sections"),
    "number at the top": ("5\n", "not readable YAML"),
    "text at the top": ("run\n", "run"),
    "key twice": ("run:\n  seed: 1\n  seed: 2\n", "not readable YAML"),
    "two documents": ("run: {seed: 1}\n---\nrun: {seed: 2}\n", "not readable YAML"),
    "tab": ("run:\n\tseed: 1\n", "not readable YAML"),
    "open bracket": ("run: [1, 2\n", "not readable YAML"),
    "open quote": ("run: {output_dir: 'x}\n", "not readable YAML"),
    "thousand brackets": ("run: " + "[" * 3000, "not readable YAML"),
    "undefined alias": ("run: *x\n", "not readable YAML"),
    "code": ("run: !!python/object/apply:os.system ['touch was_here']\n", "not readable YAML"),
    "section of another": ("run: ${dimenet}\n", "run"),
    "section of itself": ("run: ${run}\n", "Recursive"),
    "latin-1": ("run: {output_dir: caf\xe9}\n".encode("latin-1"), "not readable YAML"),
    "utf-16": ("run: {seed: 1}\n".encode("utf-16"), "not readable YAML"),
    "binary": (bytes(range(256)), "not readable YAML"),
    "nul": ("\0", "not readable YAML"),
    "json of another tool": ('{"run": {"name": "x"}}', "name"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_that_cannot_be_used(tmp_path, monkeypatch, capsys, kind):
    content, reason = FILES[kind]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    code, line = one_line(capsys, never, ["--config", "mine.yaml"])
    assert code == 2 and reason in line
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.symlink_to("nowhere"), lambda p: p.symlink_to(p.name)])
def test_things_that_are_no_file(tmp_path, capsys, make):
    make(tmp_path / "mine.yaml")
    code, line = one_line(capsys, never, ["--config", str(tmp_path / "mine.yaml")])
    assert code == 2 and "--config: no file at" in line


@pytest.mark.parametrize("content", ["", "# nothing\n", "null\n", "{}\n", "---\n"])
def test_an_empty_file_means_the_defaults(tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    assert load_config(tmp_path / "mine.yaml").denoiser == DenoiserConfig(
        checkpoint=str(PROJECT_DIR / Config().run.output_dir / "denoiser" / "best_diffusion_model.pth")
    )


def test_overrides_may_refer_to_other_settings(tmp_path):
    loaded = load_config(None, [f"run.output_dir={tmp_path}", "dataset.processed_dir=${run.output_dir}/x", "run.seed=7"])
    assert loaded.dataset.processed_dir == str(tmp_path / "x")
    assert load_config(None, ["run.seed=7", "run.threads=${run.seed}"]).run.threads == 7


def test_messages_of_several_lines_become_one(capsys):
    def fail(cfg):
        raise StageError("a\nb\n\n  c")

    assert one_line(capsys, fail, [])[1].endswith(": a b c")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file", "x"), PermissionError(13, "Permission denied", "x")])
def test_files_that_fail_under_way_are_one_line(capsys, error):
    def fail(cfg):
        raise error

    code, line = one_line(capsys, fail, [])
    assert code == 1 and error.strerror in line and "(x)" in line


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from([f"{s}.{f.name}" for s in ("run", "dimenet", "generation", "evaluation") for f in section_fields(s)]),
    value=st.one_of(st.text(max_size=12), st.floats().map(str), st.integers().map(str), st.text("[]{}:,'\"!&*$ 1a", max_size=10)),
)
def test_any_value_is_taken_or_refused_by_name(key, value):
    try:
        loaded = load_config(None, [f"{key}={value}"])
    except ConfigError as error:
        assert key.split(".")[1] in str(error) or "cannot read the override" in str(error)
    else:
        section, name = key.split(".")
        kind = type(getattr(getattr(Config(), section), name))
        taken = getattr(getattr(loaded, section), name)
        assert isinstance(taken, kind) and taken == taken


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text("run:seed{}[]-'\"#&*!| \n\t1", max_size=60).map(str.encode)))
def test_any_file_is_taken_or_refused(tmp_path, content):
    (tmp_path / "mine.yaml").write_bytes(content)
    try:
        loaded = load_config(tmp_path / "mine.yaml")
    except ConfigError as error:
        assert "mine.yaml" in str(error) or "run" in str(error)
    else:
        assert isinstance(loaded.run.seed, int)
