"""The sentences of the evidence writer: six styles, several phrasings each, one small vocabulary.

Slots: `{e}` the citation, `{liked}` and `{was}` the sign as active and passive verb, `{a}` the rating as
a noun, `{link}` what the item shares with the target and what it adds, `{target}` the target with its
features, `{favour}` the share of positive ratings. Filling the slots from the
entry alone makes a sentence true, so a phrasing holds no other claim. The first phrasing of a list is
the one that is used without temperature, and the likeliest with it.
"""

from __future__ import annotations

from dataclasses import dataclass

LIKED = {1: ("liked", "enjoyed"), -1: ("disliked", "did not enjoy")}
WAS_LIKED = {1: ("was liked", "was enjoyed"), -1: ("was disliked", "was not enjoyed")}
STRONG = {5: ("loved", "was loved"), 1: ("hated", "was hated")}
"""A user's own best and worst rating."""
CONCEDE = ("Admittedly,", "It is true that")
"""Openings of a first step that speaks against the verdict."""


@dataclass(frozen=True)
class Style:
    """How a template tells its reasons."""

    own: tuple[str, ...]
    """History."""
    neighbour: tuple[str, ...]
    """An item that similar users rated."""
    peers: tuple[str, ...]
    crowd: tuple[str, ...]
    against: tuple[str, ...]
    """Openings of a later step that speaks against the verdict."""
    close: tuple[str, ...]
    """Conclusions; `{would}` is `would` or `would not`."""
    others_first: bool = False
    """Whether others are heard before the user's own history."""


STYLES: dict[str, Style] = {
    "plain": Style(
        own=(
            "The user {liked} {e}, {a} that {link}.",
            "Earlier the user {liked} {e}, which {link}.",
            "One item that the user {liked} is {e}, {a} that {link}.",
        ),
        neighbour=(
            "Similar users {liked} {e}, and it {link}.",
            "Among similar users {e} {was}, and it {link}.",
        ),
        peers=(
            "In {e} similar users {liked} the target itself.",
            "The target itself {was} by similar users {e}.",
        ),
        crowd=(
            "The wider audience {liked} {target}{favour} {e}.",
            "In {e} the wider audience {liked} {target}{favour}.",
        ),
        against=("However,", "On the other hand,"),
        close=("So the user {would} enjoy it.", "So overall the user {would} like it."),
    ),
    "balance": Style(
        own=(
            "It counts that the user {liked} {e}, {a} that {link}.",
            "One reason is {e}, {a} that the user {liked} and that {link}.",
        ),
        neighbour=(
            "It counts that similar users {liked} {e}, as it {link}.",
            "One reason is {e}, which similar users {liked} and which {link}.",
        ),
        peers=(
            "It counts that similar users {liked} the target {e}.",
            "One reason is {e}, as similar users {liked} the target.",
        ),
        crowd=(
            "It counts that the wider audience {liked} {target}{favour} {e}.",
            "One reason is {e}, as the wider audience {liked} {target}{favour}.",
        ),
        against=("Against this,", "On the other side,"),
        close=("On balance the user {would} enjoy it.", "That tips the balance: the user {would} like it."),
    ),
    "history": Style(
        own=(
            "Looking back, the user {liked} {e}, {a} that {link}.",
            "The past shows {e}, {a} that the user {liked} and that {link}.",
            "In the history there is {e}, which the user {liked} and which {link}.",
        ),
        neighbour=(
            "People with a similar history {liked} {e}, and it {link}.",
            "In similar histories {e} {was}, and it {link}.",
        ),
        peers=(
            "As {e} shows, people with a similar history {liked} the target.",
            "In similar histories the target {was}, as {e} shows.",
        ),
        crowd=(
            "As {e} shows, earlier raters in general {liked} {target}{favour}.",
            "In general earlier raters {liked} {target}{favour} {e}.",
        ),
        against=("Still,", "But then,"),
        close=("Given this past, the user {would} enjoy it.", "So the user {would} like this one."),
    ),
    "community": Style(
        own=(
            "The user in person {liked} {e}, {a} that {link}.",
            "For this user, {e} {was}, {a} that {link}.",
        ),
        neighbour=(
            "The community of similar users {liked} {e}, which {link}.",
            "Users of the same taste {liked} {e}, which {link}.",
        ),
        peers=(
            "The target itself {was} by users of the same taste {e}.",
            "In {e} users of the same taste {liked} the target.",
        ),
        crowd=(
            "The community at large {liked} {target}{favour} {e}.",
            "In {e} the community at large {liked} {target}{favour}.",
        ),
        against=("Yet", "Even so,"),
        close=("So in this circle the user {would} enjoy it.", "So here the user {would} like it."),
        others_first=True,
    ),
    "features": Style(
        own=(
            "By features, the user {liked} {e}, {a} that {link}.",
            "The user {liked} {e}, and by its features it {link}.",
        ),
        neighbour=(
            "By features, similar users {liked} {e}, which {link}.",
            "Similar users {liked} {e}, and by its features it {link}.",
        ),
        peers=(
            "Beyond features, similar users {liked} the target itself {e}.",
            "With these features the target {was} by similar users {e}.",
        ),
        crowd=(
            "With these features the wider audience {liked} {target}{favour} {e}.",
            "Beyond features, the wider audience {liked} {target}{favour} {e}.",
        ),
        against=("By contrast,", "In contrast,"),
        close=(
            "So the features suggest that the user {would} enjoy it.",
            "All this suggests that the user {would} like it.",
        ),
    ),
    "doubt": Style(
        own=(
            "What matters is that the user {liked} {e}, {a} that {link}.",
            "Looking closer, the user {liked} {e}, which {link}.",
            "To be fair, {e} {was} by the user, {a} that {link}.",
        ),
        neighbour=(
            "To be fair, similar users {liked} {e}, as it {link}.",
            "What matters is that similar users {liked} {e}, which {link}.",
        ),
        peers=(
            "To be fair, similar users {liked} the target {e}.",
            "What matters is that similar users {liked} the target {e}.",
        ),
        crowd=(
            "To be fair, the wider audience {liked} {target}{favour} {e}.",
            "What matters is that the wider audience {liked} {target}{favour} {e}.",
        ),
        against=("A doubt remains:", "There is a doubt:"),
        close=("After all, the user {would} enjoy it.", "So despite doubts the user {would} like it."),
        others_first=True,
    ),
}
