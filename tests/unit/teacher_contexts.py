"""Contexts for tests of the teacher: one by hand, and a Hypothesis strategy over all kinds."""

from __future__ import annotations

from hypothesis import strategies as st

from ray_app.records import Context, Evidence, Item

FEATURES = ["Action", "Children's", "Comedy", "Drama", "Film-Noir", "Sci-Fi", "Science Fiction", "War"]


def evidence(name: str, kind: str, sign: int, **more) -> Evidence:
    """An entry with plain defaults."""
    facts = {
        "item_id": f"item-{name}",
        "title": f"Title {name}",
        "features": [],
        "shared": [],
        "rating": 4.0 if sign > 0 else 2.0,
        "support": 5,
        "weight": 0.5,
    }
    return Evidence(id=name, kind=kind, sign=sign, **(facts | more))


def context(*entries: Evidence, like_rate: float = 0.5, **more) -> Context:
    """A context whose target is a Comedy and Sci-Fi item."""
    target = Item(item_id="target", title="The Target", features=["Comedy", "Sci-Fi"], year=1995)
    facts = {"user_id": "u1", "timestamp": 100, "history_count": 12, "target": target, "profile": []}
    return Context(**(facts | more), like_rate=like_rate, evidence=list(entries))


def usual() -> Context:
    """Two of the user's own, one of similar users, peers and crowd; signs + - + - +."""
    return context(
        evidence("e1", "history", 1, features=["Comedy", "Drama"], shared=["Comedy"], rating=5.0, weight=0.9),
        evidence("e2", "history", -1, features=["Drama", "War"], weight=0.4),
        evidence("e3", "neighbour", 1, features=["Sci-Fi"], shared=["Sci-Fi"], support=9),
        evidence("e4", "peers", -1, support=4, weight=0.3),
        evidence("e5", "crowd", 1, rating=0.7, support=120, weight=0.4),
    )


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    """Any mix of one to sixteen entries, with at least one that ratings stand behind."""
    target = draw(st.lists(st.sampled_from(FEATURES), unique=True, max_size=4))
    entries = []
    for place in range(1, draw(st.integers(1, 16)) + 1):
        kind = draw(st.sampled_from(["history", "neighbour", "peers", "crowd"]))
        own = draw(st.lists(st.sampled_from(FEATURES), unique=True, max_size=4))
        about_item = kind in ("history", "neighbour")
        features = own if about_item else target
        entries.append(
            evidence(
                f"e{place}",
                kind,
                draw(st.sampled_from([-1, 1])),
                features=features,
                shared=[name for name in own if name in target] if about_item else [],
                support=draw(st.integers(1 if kind == "history" or place == 1 else 0, 300)),
                weight=draw(st.floats(0, 2)),
            )
        )
    made = context(*entries, like_rate=draw(st.floats(0, 1)))
    return made.model_copy(update={"target": made.target.model_copy(update={"features": target})})
