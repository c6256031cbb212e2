"""Reasoning scales by our own policy, on a real Ray: a second replica comes while requests wait."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from bench.graph import served
from serve.settings import Settings
from tests.bundles import Breakable, make_bundle, store_url

pytestmark = pytest.mark.heavy
DEADLINE_S = 60.0
LIMIT_S = 120.0


def test_a_second_replica_comes_while_requests_wait(tmp_path: Path):
    from ray import serve

    bundle = make_bundle(
        tmp_path, deadline_s=DEADLINE_S, max_ongoing=2, max_queued=16, reasoning_max_replicas=2
    )
    settings = Settings(bundle.config, str(tmp_path), store_url(tmp_path))
    with served(settings, lambda *_: Breakable(tmp_path), 4) as address:

        def running() -> int:
            found = serve.status().applications["rationale"].deployments["Reasoning"]
            return found.replica_states.get("RUNNING", 0)

        def target() -> int:
            """Replicas there are and that are being made."""
            found = serve.status().applications["rationale"].deployments["Reasoning"]
            return sum(found.replica_states.values())

        def ask(n: int) -> int:
            body = {"user_id": f"u{n}", "k": 2}
            url = f"{address}/v1/recommendations"
            return httpx.post(url, json=body, timeout=2 * DEADLINE_S, trust_env=False).status_code

        assert ask(0) == 200
        assert running() == 1
        (tmp_path / "hung").touch()
        with ThreadPoolExecutor(2) as pool:
            # A replica is ready only once its student has answered, and that hangs too.
            began = time.monotonic()
            asked = [pool.submit(ask, n) for n in (1, 2)]
            while target() < 2:
                assert time.monotonic() - began < LIMIT_S, "no second replica was asked for"
                time.sleep(0.5)
            print(f"\na second replica was asked for after {time.monotonic() - began:.1f} s")
            (tmp_path / "hung").unlink()
            while running() < 2:
                assert time.monotonic() - began < LIMIT_S, "the second replica did not come up"
                time.sleep(0.5)
            print(f"two replicas after {time.monotonic() - began:.1f} s")
            assert [one.result() for one in asked] == [200, 200]
