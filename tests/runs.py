"""Small run folders: one made without Ray (neighbours by the library, vectors by `encode`), and the files
and the config of one that goes through every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipelines.encode import encode_stage
from ray_app.artifacts import Folder, Run
from ray_app.config import Config, validate
from ray_app.records import INTERACTIONS, ITEMS, USERS
from ray_app.swing.items import item_neighbours
from ray_app.swing.snapshots import plan
from ray_app.swing.users import UserIndex, strengths

N_USERS, N_ITEMS, N_ROWS = 24, 30, 500
GENRES = ["Action", "Comedy", "Drama", "Sci-Fi", "War"]
CONFIG = validate(
    {
        "swing": {"snapshots": 2, "min_behavior": 1, "user_min_similarity": 0.0},
        "collab": {"dimensions": 4},
    },
    "test",
)


def interactions() -> pl.DataFrame:
    """500 rows of 24 users and 30 items, four a timestamp; users like one of five genres."""
    rng = np.random.default_rng(5)
    pairs = rng.permutation(N_USERS * N_ITEMS)[:N_ROWS]
    user, item = pairs // N_ITEMS, pairs % N_ITEMS
    rating = np.where(user % 5 == item % 5, 5, rng.integers(1, 6, N_ROWS))
    valid, test = N_ROWS * 8 // 10, N_ROWS * 9 // 10
    return numbered(
        pl.DataFrame(
            {
                "user": user,
                "item": item,
                "timestamp": 1_000_000 + np.arange(N_ROWS) // 4 * 3600,
                "rating": rating,
                "label": rating >= 4,
                "split": np.repeat(["train", "valid", "test"], [valid, test - valid, N_ROWS - test]),
            }
        )
    )


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as stage prepare writes it: in time order, with row numbers."""
    ordered = frame.drop("row_id", strict=False).sort("timestamp", maintain_order=True)
    table = ordered.with_row_index("row_id").select(INTERACTIONS.names).to_arrow().cast(INTERACTIONS)
    return pl.DataFrame(table)


def make_run(folder: Folder, frame: pl.DataFrame, config: Config = CONFIG) -> Run:
    """A run with the files of prepare, swing and encode made from `frame`."""
    run = Run(folder.uri)
    prepare, swing = run.stage("prepare"), run.stage("swing")
    titles = [f"Film {n}" for n in range(N_ITEMS)]
    items = {
        "item": range(N_ITEMS),
        "item_id": [f"i{n}" for n in range(N_ITEMS)],
        "title": titles,
        "features": [sorted({GENRES[n % 5], GENRES[n % 3]}) for n in range(N_ITEMS)],
        "keywords": [[]] * N_ITEMS,
        "year": [1980 + n if n % 7 else None for n in range(N_ITEMS)],
        "description": [""] * N_ITEMS,
    }
    users = {
        "user": range(N_USERS),
        "user_id": [f"u{n}" for n in range(N_USERS)],
        "profile": ["{}"] * N_USERS,
    }
    for name, table, schema in (
        ("interactions", frame, INTERACTIONS),
        ("items", pl.DataFrame({key: list(value) for key, value in items.items()}), ITEMS),
        ("users", pl.DataFrame({key: list(value) for key, value in users.items()}), USERS),
    ):
        with prepare.replacing(f"{name}.parquet") as local:
            pq.write_table(table.select(schema.names).to_arrow().cast(schema), local)
    snapshots = plan(frame["timestamp"].to_numpy(), frame["split"].to_numpy(), config.swing.snapshots)
    for entry in snapshots:
        known = frame.head(entry["rows"])
        user, item = known["user"].to_numpy(), known["item"].to_numpy()
        label, time = known["label"].to_numpy(), known["timestamp"].to_numpy()
        target = swing.folder(entry["name"]).uri
        item_neighbours(user, item, N_USERS, N_ITEMS, config.swing, seed=config.seed).save(target, "items")
        UserIndex.build(
            user,
            item,
            strengths(label),
            time,
            int(time.max()),
            N_USERS,
            N_ITEMS,
            config.swing,
            ratings=known["rating"].to_numpy(),
            labels=label,
            seed=config.seed,
        ).save(target, "users")
    swing.write_json("snapshots.json", snapshots)
    encode_stage(config, run, run.stage("encode"))
    return run


def write_inputs(
    folder: Path, n_users: int = 60, n_items: int = 80, n_rows: int = 3000, fond: float | None = 0.7
) -> None:
    """Interactions and items as CSV files: users who like one of five genres, a share `fond` of them."""
    rng = np.random.default_rng(3)
    pairs = rng.permutation(n_users * n_items)[:n_rows]
    users, items = pairs // n_items, pairs % n_items
    loves = users % 5 == items % 5
    if fond is not None:
        loves &= rng.random(n_users)[users] < fond
    rating = np.where(loves, 5, rng.integers(1, 6, n_rows))
    rows = [f"u{u},i{i},{1000 + n},{r}" for n, (u, i, r) in enumerate(zip(users, items, rating, strict=True))]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp,rating\n" + "\n".join(rows) + "\n")
    films = [f"i{i},Film {i} ({1990 + i % 9}),{GENRES[i % 5]}|{GENRES[i % 3]}" for i in range(n_items)]
    (folder / "items.csv").write_text("item_id,title,features\n" + "\n".join(films) + "\n")


def small_config(inputs: Path, **train: object) -> Config:
    """Every stage on `write_inputs`' files with the least that still goes through every branch."""
    tree = {
        "name": "small",
        "data": {
            "source": "files",
            "interactions": str(inputs / "interactions.csv"),
            "items": str(inputs / "items.csv"),
            "cache": str(inputs / "cache"),
        },
        "swing": {"snapshots": 1, "min_behavior": 1},
        "collab": {"dimensions": 8},
        "prompt": {"history": 3, "neighbours": 2, "candidates": 2, "reason_first": True},
        "reason": {"fraction": 0.05, "shard_rows": 200},
        "student": {
            "bootstrap": {
                "hidden": 32,
                "heads": 1,
                "layers": 1,
                "vocab": 600,
                "language_epochs": 0.6,
            },
            "projector_dropout": 0.0,
            "direct": 0.6,
            "max_length": 384,
        },
        "train": {
            "batch_tokens": 2048,
            "epochs": 0.5,
            "learning_rate": 2e-3,
            "projector_learning_rate": 2e-3,
            "expert_epochs": 0.3,
            "max_experts": 3,
            "threads": 1,
            "valid_rows": 60,
            "max_failures": 0,
            **train,
        },
        "evaluate": {
            "k": [5],
            "rows": 120,
            "catalogue_users": 4,
            "catalogue_candidates": 20,
            "explanations": 6,
            "bootstrap": 50,
        },
        "ray": {"num_cpus": 4, "object_store_mb": 128},
    }
    return validate(tree, "small")
