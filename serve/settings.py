"""Where a deployment finds what it serves: plain values, small enough to send to every replica."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray_app.artifacts import Run
from ray_app.config import Config, load
from ray_app.errors import ConfigError

BUNDLE = "publish/bundle"
STORE = "store.sqlite"


@dataclass(frozen=True)
class Settings:
    """What `build` made of its arguments."""

    config: Config
    bundle: str
    """Folder or URI of the published bundle."""
    store: str
    """SQLAlchemy URL."""


def settings(args: dict[str, str]) -> Settings:
    """From the arguments of the Serve config file: `config`, `run` and optionally `bundle`.

    Raises ConfigError for a missing or unknown argument, and for an embedded store in a run that is not
    on a local disk.
    """
    if unknown := set(args) - {"config", "run", "bundle"}:
        raise ConfigError(f"unknown argument {sorted(unknown)[0]!r}: use config, run, bundle")
    for name in ("config", "run"):
        if not args.get(name):
            raise ConfigError(f"argument {name!r} is missing: give it under args in the Serve config file")
    config, run = load(args["config"]), Run(_absolute(args["run"]))
    bundle = _absolute(args["bundle"]) if args.get("bundle") else run.folder.path(BUNDLE)
    if config.serve.store is None and not run.folder.is_local:
        raise ConfigError(f"run {args['run']!r} is not on a local disk: set serve.store to a database URL")
    return Settings(config, bundle, config.serve.store or f"sqlite:///{run.folder.path(STORE)}")


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())
