"""What a shard's worker is at, written before it starts: so that a row that kills engines is found out.

A worker that is gone without a word (killed, out of memory, crashed in native code, stalled) leaves the
rows that were in flight in `journal/<shard>.json`. Whoever takes the shard next tries those rows first and
one at a time; a row over which the process dies alone `attempts` times is quarantined.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from ray_app.artifacts import Folder
from ray_app.errors import EngineError

BARREN = 3
"""Rows quarantined in succession, or starts in succession, that died: then it is not the rows' fault."""


@dataclass
class Facts:
    """The file's content."""

    starting: bool = False
    """An engine is being started."""
    flight: list[int] = field(default_factory=list)
    """Rows that are being worked on."""
    since: float = 0.0
    """Epoch seconds since when."""
    suspects: list[int] = field(default_factory=list)
    """Rows in flight when a process died, to be tried alone."""
    deaths: dict[str, int] = field(default_factory=dict)
    """row_id -> processes that died over it alone."""
    died: int = 0
    """Processes lost in all."""
    barren: int = 0
    """Processes lost since a batch was last served."""
    false_starts: int = 0
    seconds: float = 0.0
    """Spent on batches that were served."""


class Journal:
    """The journal of one shard, opened by the worker that takes the shard."""

    def __init__(self, folder: Folder, shard: int, attempts: int):
        self._folder = folder
        self._name = journal_name(shard)
        self._attempts = max(2, attempts)  # one death may have been the driver's or the machine's
        known = folder.read_json(self._name) if folder.exists(self._name) else {}
        self.facts = Facts(**known)
        self.loss = self._take_stock()

    def _take_stock(self) -> str:
        """Put down what became of the last worker; what it died over, or nothing."""
        facts = self.facts
        if not facts.starting and not facts.flight:
            return ""
        seconds = time.time() - facts.since
        facts.died += 1
        if facts.starting:
            facts.false_starts += 1
            loss = f"the engine's process was lost {seconds:.0f} s after its start began"
        else:
            facts.barren += 1
            if len(facts.flight) == 1:
                row = str(facts.flight[0])
                facts.deaths[row] = facts.deaths.get(row, 0) + 1
            facts.suspects = list(dict.fromkeys([*facts.flight, *facts.suspects]))
            rows = f"row {facts.flight[0]}" if len(facts.flight) == 1 else f"{len(facts.flight)} rows"
            loss = f"the engine's process was lost {seconds:.0f} s after it began {rows}"
        facts.starting, facts.flight = False, []
        self._write()
        if facts.false_starts >= BARREN or facts.barren > BARREN * self._attempts:
            count = max(facts.false_starts, facts.barren)
            facts.false_starts = facts.barren = 0  # the next run has all its chances again
            self._write()
            raise EngineError(
                f"{loss}, and so {count} times with nothing served between: see its log for why (memory, a "
                "stall, a crash), then run the stage again"
            )
        return loss

    def quarantined(self) -> dict[int, str]:
        """Rows not to be tried again, with the reason."""
        return {
            int(row): f"the engine's process was lost {count} times over this row alone"
            for row, count in self.facts.deaths.items()
            if count >= self._attempts
        }

    def suspects(self) -> list[int]:
        out = self.quarantined()
        return [row for row in self.facts.suspects if row not in out]

    def starts(self) -> None:
        """An engine is about to start."""
        self.facts.starting, self.facts.since = True, time.time()
        self._write()

    def started(self) -> None:
        self.facts.starting, self.facts.false_starts = False, 0

    def begins(self, row_ids: Sequence[int]) -> None:
        """These rows go to the engine now."""
        self.facts.flight, self.facts.since = list(row_ids), time.time()
        self._write()

    def served(self) -> None:
        """They are through. Written with the next beginning: until then a death is laid to them again."""
        facts = self.facts
        facts.seconds += time.time() - facts.since
        facts.suspects = [row for row in facts.suspects if row not in facts.flight]
        facts.flight, facts.barren = [], 0

    def ends(self) -> None:
        """The shard is written."""
        self.facts.flight, self.facts.suspects = [], []
        self._write()

    def _write(self) -> None:
        self._folder.write_json(self._name, asdict(self.facts))


def journal_name(shard: int) -> str:
    return f"journal/{shard:05d}.json"


def read_journals(folder: Folder) -> tuple[int, float]:
    """Processes lost and engine seconds over all shards."""
    facts = [Facts(**folder.read_json(name)) for name in folder.names("journal")]
    return sum(one.died for one in facts), sum(one.seconds for one in facts)
