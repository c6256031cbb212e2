"""The published bundle: everything the service needs, as one versioned folder.

    bundle.json         version, config, experts, `cut`: the last timestamp it has seen, and the SHA-256 of
                        every file above report/
    model/              a bootstrapped base LM         adapters/<name>@<version>/   LoRA adapters
    projector.pt        clusters.npz                   calibration.json
    trees.txt           synthesis.json
    items.parquet       users.parquet                  histories.npz
    state.npz           latent.npy                     swing/   item neighbours and user index
    report/             the report of the run as published: metrics.json, report.html, plots

Adapter folders and names carry the version: engines key their prefix cache on the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ray_app.agents.synthesis import Weights
from ray_app.artifacts import Folder, file_hash
from ray_app.collab.evidence import Gatherer, History
from ray_app.collab.features import Catalogue, Histories, encode
from ray_app.collab.opinions import Crowd
from ray_app.collab.rolling import ItemState, user_rate
from ray_app.collab.trees import Trees
from ray_app.config import Config, validate
from ray_app.errors import ArtifactError, NotFoundError
from ray_app.records import Interaction, Item, item_record
from ray_app.student.experts import GLOBAL, Choice, Clusters, choose
from ray_app.swing.snapshots import load_snapshot

MANIFEST = "bundle.json"
REPORT = "report"
"""Folder of the run's report in a published bundle; the service does without."""
SYNTHESIS = "synthesis.json"
TREES = "trees.txt"
FILES = (
    "items.parquet", "users.parquet", "histories.npz", "state.npz", "latent.npy", "clusters.npz",
    "calibration.json", TREES, SYNTHESIS,
)  # fmt: skip
"""What `Bundle.open` reads beside the manifest and swing/."""


def synthesis_weights(folder: Folder) -> Weights:
    """Weights of reflection's synthesis in the folder of a bundle, or of stage reflect."""
    return Weights(**folder.read_json(SYNTHESIS))


def seal(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of the bundle that the folder holds: `facts`, and the hash of every other file."""
    found = sorted(file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST)
    manifest = facts | {"files": {str(file.relative_to(path)): file_hash(file) for file in found}}
    Folder(path).write_json(MANIFEST, manifest)
    return manifest


def verify(path: Path, manifest: dict[str, Any]) -> list[str]:
    """Experts whose adapters are not the ones that were sealed: the service does without them.

    Raises ArtifactError if any other file is missing or changed.
    """
    files: dict[str, str] = manifest.get("files", {})
    missing = {name for name in (*FILES, *files) if not (path / name).is_file()}
    changed = {name for name in set(files) - missing if file_hash(path / name) != files[name]}
    version = manifest["version"]
    adapters = {name: f"adapters/{name}@{version}/" for name in manifest["experts"]}
    lost = [
        name
        for name, folder in adapters.items()
        if any(file.startswith(folder) for file in missing | changed)
    ]
    spared = tuple(adapters[name] for name in lost)
    missing, changed = (
        sorted(file for file in found if not file.startswith(spared)) for found in (missing, changed)
    )
    if missing:
        raise ArtifactError(f"bundle {path} has no {', '.join(missing)}: run stage publish again")
    if not files:
        raise ArtifactError(f"bundle {path} lists no hashes of its files: run stage publish again")
    if changed:
        raise ArtifactError(
            f"bundle {path}: {', '.join(changed)} not as published: copy the bundle again, or publish again"
        )
    return lost


@dataclass(frozen=True)
class Bundle:
    """The parts of a bundle that need no model: shared by all agents, memory-mapped where large."""

    path: Path
    version: str
    cut: int
    experts: list[str]
    lost: list[str]
    """Experts whose adapters are missing or damaged; the gate has the global one decide for them."""
    config: Config
    user_codes: dict[str, int]
    item_codes: dict[str, int]
    items: list[Item]
    catalogue: Catalogue
    histories: Histories
    ratings: np.ndarray
    """float32 [n], NaN where unknown; in the order of `histories`."""
    crowd: Crowd
    """`histories`, found by item too."""
    state: ItemState
    latent: np.ndarray
    gatherer: Gatherer
    clusters: Clusters
    calibration: dict[str, tuple[float, float]]
    trees: Trees
    """What a second look weighs the same signals by."""
    synthesis: Weights
    """Of a decision and its second looks."""

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Raises ArtifactError if the folder holds no complete bundle, or a file is not as it was sealed; an
        expert's adapter may be, then the expert is `lost`."""
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ArtifactError(f"{path} holds no {MANIFEST}: run the pipeline until stage publish")
        facts = Folder(path).read_json(MANIFEST)
        lost = verify(path, facts)
        config = validate(facts["config"], str(path / MANIFEST))
        items = [item_record(row) for row in pl.read_parquet(path / "items.parquet").iter_rows(named=True)]
        user_ids = pl.read_parquet(path / "users.parquet")["user_id"].to_list()
        with np.load(path / "histories.npz") as stored:
            histories = Histories(**{name: stored[name] for name in Histories.__dataclass_fields__})
            ratings = stored["ratings"]
        swing, index = load_snapshot(Folder(path), "swing")
        catalogue = Catalogue.build([item.features for item in items], [item.year for item in items])
        return cls(
            path=path,
            version=facts["version"],
            cut=facts["cut"],
            experts=[name for name in facts["experts"] if name not in lost],
            lost=lost,
            config=config,
            user_codes={name: code for code, name in enumerate(user_ids)},
            item_codes={item.item_id: code for code, item in enumerate(items)},
            items=items,
            catalogue=catalogue,
            histories=histories,
            ratings=ratings,
            crowd=Crowd.of(histories, len(items)),
            state=ItemState.load(path / "state.npz"),
            latent=np.load(path / "latent.npy", mmap_mode="r"),
            gatherer=Gatherer(items, catalogue, swing, index, config.prompt, config.data.positive_rating),
            clusters=Clusters.load(path / "clusters.npz"),
            calibration={
                name: (value[0], value[1])
                for name, value in Folder(path).read_json("calibration.json").items()
            },
            trees=Trees.load(path / TREES),
            synthesis=synthesis_weights(Folder(path)),
        )

    @property
    def model(self) -> str:
        """Folder of the base LM in the bundle, or the pretrained one that the config names."""
        own = self.path / "model"
        return str(own) if own.exists() or self.config.student.base is None else self.config.student.base

    @property
    def adapters(self) -> dict[str, Path]:
        """Folder of every adapter by name."""
        return {name: self.adapter(name) for name in (GLOBAL, *self.experts)}

    def adapter(self, name: str) -> Path:
        """Folder of an adapter, `global` or an expert."""
        return self.path / "adapters" / f"{name}@{self.version}"

    def item_code(self, item_id: str) -> int:
        try:
            return self.item_codes[item_id]
        except KeyError:
            raise NotFoundError(f"item {item_id!r} does not exist in bundle {self.version}") from None

    def history(self, user_id: str, later: list[Interaction]) -> History:
        """A user's whole history: what the bundle has seen, then later events from the store, by time.

        Events at or before `cut` in `later` are the bundle's own and are passed over; a user the bundle
        has never seen has only later events.
        """
        code = self.user_codes.get(user_id)
        first, last = self.histories.indptr[[code, code + 1]] if code is not None else (0, 0)
        part = slice(first, last)
        new = [event for event in later if event.timestamp > self.cut and event.item_id in self.item_codes]
        new.sort(key=lambda event: event.timestamp)
        codes = np.array([self.item_codes[event.item_id] for event in new], np.int32)
        labels = np.array([event.label for event in new], np.float32)
        ratings = [np.nan if event.rating is None else event.rating for event in new]
        rates = self.statistics(codes)[:, 1]
        return History(
            np.concatenate([self.histories.items[part], codes]),
            np.concatenate([self.histories.labels[part], labels]),
            np.concatenate([self.ratings[part], np.array(ratings, np.float32)]),
            np.concatenate([self.histories.residuals[part], (labels - rates).astype(np.float32)]),
            np.concatenate([self.histories.timestamps[part], [event.timestamp for event in new]]).astype(
                np.int64
            ),
        )

    def statistics(self, items: np.ndarray) -> np.ndarray:
        """float64 [n, 3]: count, rate, effect of items now."""
        catalogue = self.catalogue
        return self.state.statistics(items, catalogue.indptr, catalogue.features, self.config.collab.prior)

    def like_rate(self, history: History) -> float:
        prior, rate = self.config.collab.prior, self.state.global_rate
        return user_rate(float(history.labels.sum()), len(history), rate, prior)

    def vectors(self, history: History, targets: np.ndarray, now: int) -> dict[str, np.ndarray]:
        """Collaborative vectors of one user with many targets, by the function that made the training's."""
        n = len(targets)
        alone = Histories(
            np.array([0, len(history)], np.int64),
            history.items,
            history.labels,
            history.residuals,
            history.timestamps,
            np.arange(len(history)),
        )
        return encode(
            alone,
            np.zeros(n, np.int32),
            np.zeros(n, np.int64),
            np.full(n, len(history), np.int64),
            targets.astype(np.int32),
            np.full(n, now, np.int64),
            self.statistics(targets.astype(np.int32)),
            np.full(n, self.state.global_rate),
            self.catalogue,
            np.asarray(self.latent),
            self.gatherer.swing,
            self.crowd,
            self.config.collab.prior,
            self.config.collab.window,
        )

    def choice(self, user_vector: np.ndarray) -> Choice:
        """The gate's choice of adapters for a user vector [du]."""
        return choose(user_vector, self.clusters, set(self.experts), self.config.serve.gate)

    def missed(self, user_vector: np.ndarray) -> str:
        """The lost experts that the gate would have asked, listed; empty if there are none."""
        if not self.lost:
            return ""
        everyone = {*self.experts, *self.lost}
        wanted = choose(user_vector, self.clusters, everyone, self.config.serve.gate).weights
        return ", ".join(name for name in self.lost if name in wanted)
