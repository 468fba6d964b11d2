"""Read settings: defaults, then ``config.yaml``, then the command line.

Every script is called the same way::

    python STAGE.py [--config config.yaml] [section.key=value ...]

An unknown key, a wrong type or an impossible value ends the program with one line and exit code 2 before any work starts.
Relative paths in a configuration file are relative to that file. Relative paths on the command line are relative to the working
folder. Paths that nobody wrote are those of the project, wherever the file lies.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError, first_line
from pipeline.files import PROJECT_DIR, missing_file
from pipeline.settings import BASELINE_DIR, Config, section_fields
from pipeline.shards import read_shard

if TYPE_CHECKING:
    from omegaconf import DictConfig


def load_config(config_path: str | os.PathLike | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge the defaults, the YAML file and the overrides, and check every value.

    Args:
        config_path: YAML file; None: the defaults alone.
        overrides: texts of the form ``section.key=value``; later ones win.

    Raises:
        ConfigError: something cannot be used. The message names the file or the override.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged = _defaults()
    sources: list[tuple[str, Any]] = []
    if config_path is not None:
        path = Path(config_path)
        if not path.is_file():
            raise missing_file("--config", path, error=ConfigError)
        try:
            content = _parse_yaml(path.read_text(encoding="utf-8"))
            loaded = OmegaConf.create({} if content is None else content) if isinstance(content, dict | list | None) else None
        except Exception as error:  # PyYAML and OmegaConf raise unrelated families of errors here
            raise ConfigError(f"{path} is not readable YAML: {first_line(error)}") from error
        if loaded is None:
            raise ConfigError(f"{path} is not readable YAML: '{str(content)[:40]}' stands in place of sections such as 'run:'")
        if not OmegaConf.is_dict(loaded):
            raise ConfigError(f"{path}: expected sections such as 'run:' at the top level")
        sources.append((str(path), _absolute_paths(loaded, path.resolve().parent)))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"cannot read the override '{override}': expected section.key=value")
        try:
            parsed = OmegaConf.create({})
            OmegaConf.update(parsed, key, _parse_yaml(value) if value else "")  # YAML would read an empty value as null
        except Exception as error:  # YAML errors in the value
            raise ConfigError(f"cannot read the override '{override}': {first_line(error)}") from error
        sources.append((f"override '{override}'", _absolute_paths(parsed, Path.cwd())))
    try:
        merged = OmegaConf.merge(merged, *(values for _, values in sources))
    except OmegaConfBaseException:
        for source, values in sources:  # which of them is it?
            try:
                merged = OmegaConf.merge(merged, values)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{source}: {first_line(error)}") from error
    try:
        if merged.external.name == "auto":  # before the references to it are resolved
            name = "baseline" if _is_same_path(merged.external.cif_dir, BASELINE_DIR) else "external"
            merged = OmegaConf.merge(merged, {"external": {"name": name}})
        resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{first_line(error)}") from error

    sections = {}
    for section in dataclasses.fields(Config):
        values = resolved[section.name]
        for f in section_fields(section.name):
            _check_value(f"{section.name}.{f.name}", values[f.name], f.metadata)
            if f.metadata["path"] and values[f.name]:
                values[f.name] = _each(values[f.name], lambda path: str((PROJECT_DIR / _expanded(path)).absolute()))
        sections[section.name] = section.default_factory(**values)
    config = Config(**sections)
    _check_relations(config)
    return config


@functools.cache
def _defaults() -> DictConfig:
    """Return the defaults as OmegaConf has them. They are merged into others, which copies them, and never changed."""
    from omegaconf import OmegaConf

    defaults = OmegaConf.structured(Config)
    OmegaConf.set_readonly(defaults, False)
    for section in dataclasses.fields(Config):
        OmegaConf.set_readonly(defaults[section.name], False)
    return defaults


@functools.cache
def _yaml_loader() -> type:
    """Return OmegaConf's loader with the booleans of YAML 1.2: ``NO`` stays a text (nitrogen monoxide), as do ``yes`` and ``on``.

    Settings that are booleans take these words all the same.
    """
    from omegaconf._yaml import get_yaml_loader

    class Loader(get_yaml_loader()):
        pass

    boolean = "tag:yaml.org,2002:bool"
    resolvers = Loader.yaml_implicit_resolvers.items()
    Loader.yaml_implicit_resolvers = {first: [pair for pair in pairs if pair[0] != boolean] for first, pairs in resolvers}
    Loader.add_implicit_resolver(boolean, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader


def _parse_yaml(text: str) -> Any:
    """Return what a YAML text holds: plain values, lists and dictionaries."""
    loader = _yaml_loader()(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _absolute_paths(parsed: Any, base: Path) -> Any:
    """Make the relative paths of one source absolute. base: the folder that they mean.

    A path that begins with a reference, such as ``${run.output_dir}/x``, is what it refers to.
    """
    from omegaconf import OmegaConf

    known = {f.name for f in dataclasses.fields(Config)}
    for section, values in OmegaConf.to_container(parsed, resolve=False).items():
        if section not in known or not isinstance(values, dict):
            continue
        for key in {f.name for f in section_fields(section) if f.metadata["path"]} & set(values):
            value = values[key]
            if value and all(isinstance(path, str) for path in (value if isinstance(value, list) else [value])):
                parsed[section][key] = _each(
                    value, lambda path: path if path.startswith("${") or not path else str((base / _expanded(path)).absolute())
                )
    return parsed


def _is_same_path(path: str, other: str) -> bool:
    """Tell whether two paths, relative ones below the project, name the same place."""
    return (PROJECT_DIR / path).absolute() == (PROJECT_DIR / other).absolute()


def _each(value: str | list[str], change: Callable[[str], str]) -> str | list[str]:
    """Change a path, or every path of a list."""
    return [change(path) for path in value] if isinstance(value, list) else change(value)


def _expanded(path: str) -> Path:
    """Replace ``~`` by the home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{path}: there is no such home folder") from error


def _check_value(key: str, value: Any, metadata: Any) -> None:
    """Raise ConfigError for a number out of its range and for a word that is none of the choices."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if number != number or number in (float("inf"), float("-inf")):
            raise ConfigError(f"{key}={number}: must be finite")
        if metadata["low"] is not None and number < metadata["low"]:
            raise ConfigError(f"{key}={number}: must be at least {metadata['low']:.12g}")
        if metadata["high"] is not None and number > metadata["high"]:
            raise ConfigError(f"{key}={number}: must be at most {metadata['high']:.12g}")
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(f"{key}={value}: choose one of {', '.join(metadata['choices'])}")


def _check_relations(config: Config) -> None:
    """Raise ConfigError for settings that contradict each other."""
    device = config.run.device
    if device not in ("auto", "cpu", "cuda") and not re.fullmatch(r"cuda:[0-9]{1,2}", device):
        raise ConfigError(f"run.device={device}: choose auto, cpu, cuda or cuda:N")
    if not re.fullmatch(r"processes|dask|slurm|(tcp|tls)://.+:[0-9]+", config.run.scheduler):
        raise ConfigError(f"run.scheduler={config.run.scheduler}: choose processes, dask, slurm or tcp://HOST:PORT")
    folders = ("run.output_dir", "dataset.processed_dir", "generation.output_dir", "evaluation.output_dir", "external.output_dir")
    for key in folders:
        section, name = key.split(".")
        if not getattr(getattr(config, section), name):
            raise ConfigError(f"{key}: name a folder")
    for name in ("generation", "evaluation"):
        text = getattr(config, name).shard
        try:
            read_shard(text)
        except ValueError as error:
            raise ConfigError(f"{name}.shard={text}: {error}") from error
    for name in ("dimenet", "dataset"):
        section = getattr(config, name)
        if section.val_fraction + section.test_fraction >= 0.9:
            raise ConfigError(f"{name}.val_fraction + {name}.test_fraction leave less than 10 % for training")
    if config.denoiser.beta_start >= config.denoiser.beta_end:
        raise ConfigError("denoiser.beta_start must be below denoiser.beta_end")
    if config.denoiser.sigma_min >= config.denoiser.sigma_max:
        raise ConfigError("denoiser.sigma_min must be below denoiser.sigma_max")
    if config.dataset.label_more and not config.dataset.label_model:
        raise ConfigError("dataset.label_more needs dataset.label_model, the denoiser whose heads choose the rows")
    if config.denoiser.train_only == "heads" and not config.denoiser.init_from:
        raise ConfigError("denoiser.train_only=heads needs denoiser.init_from, the model whose heads are trained")
    if config.dataset.synth_e_hull_max_ev > config.dataset.unsynth_e_hull_min_ev:
        raise ConfigError("dataset.synth_e_hull_max_ev must not exceed dataset.unsynth_e_hull_min_ev")
    if config.evaluation.synthesizability == "csllm" and not config.evaluation.csllm_path:
        raise ConfigError("evaluation.synthesizability=csllm needs evaluation.csllm_path (a local folder or a hub id)")
    if unknown := set(config.demo.parts) - {
        "all",
        "monolayers",
        "references",
        "adsorption",
        "hosts",
        "snapshots",
        "random",
        "known",
        "baseline",
        "truth",
    }:
        raise ConfigError(f"demo.parts: unknown part {', '.join(sorted(unknown))}")
    if any(not 0 < milestone <= 1 for milestone in config.dimenet.lr_milestones):
        raise ConfigError("dimenet.lr_milestones are fractions of the run, in (0, 1]")


def help_text(doc: str | None, sections: Sequence[str]) -> str:
    """Return what ``--help`` prints: the docstring of the stage, and the settings that it reads with their defaults.

    doc: None where Python runs without docstrings (PYTHONOPTIMIZE=2).
    """
    lines = [textwrap.dedent(doc or "").strip(), "", "usage: python STAGE.py [--config config.yaml] [section.key=value ...]", ""]
    for section in sections:
        lines.append(f"{section}:")
        for f in section_fields(section):
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            lines.append(f"  {section + '.' + f.name + '=' + str(default):<62s} {f.metadata['doc']}")
        lines.append("")
    return "\n".join(lines)


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Split a command line into (configuration file, overrides); without ``--config`` the project's ``config.yaml`` is taken."""
    config_path: Path | None = None
    overrides: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--config":
            value = next(pending, None)
            if value is None:
                raise ConfigError("--config needs a file name")
            config_path = Path(value)
        elif argument.startswith("--config="):
            config_path = Path(argument.partition("=")[2])
        elif argument.startswith("-"):
            raise ConfigError(f"unknown option {argument}; see --help")
        else:
            overrides.append(argument)
    if config_path is None:
        default = PROJECT_DIR / "config.yaml"
        config_path = default if default.is_file() else None
    return config_path, overrides
