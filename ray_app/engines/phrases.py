"""The sentences of the evidence writer: six styles, several phrasings each, one small vocabulary.

Slots: `{e}` the citation, `{liked}` and `{was}` the sign as active and passive verb, `{shared}` the
shared features, `{some}` a vague count. A phrasing may use only what is true of every entry of its
kind and sign, so that filling the slots is enough to make it true.
"""

from __future__ import annotations

from dataclasses import dataclass

LIKED = {1: ("liked", "enjoyed"), -1: ("disliked", "did not enjoy")}
WAS_LIKED = {1: ("was liked", "was enjoyed"), -1: ("was disliked", "was not enjoyed")}
COUNTS = ((3, "a few"), (15, "some"), (63, "many"))
MOST = "very many"


@dataclass(frozen=True)
class Style:
    """How a template tells its reasons. `order` names the step that comes first, second, ..."""

    order: tuple[str, ...]
    """Any of: own (history), others (neighbour, peers, crowd), against; the closing step is not listed."""
    related: tuple[str, ...]
    """History that shares features with the target."""
    unrelated: tuple[str, ...]
    """History that shares none."""
    neighbour: tuple[str, ...]
    """An item of similar users that shares features; without shared features `neighbour_plain`."""
    neighbour_plain: tuple[str, ...]
    peers: tuple[str, ...]
    crowd: tuple[str, ...]
    against: tuple[str, ...]
    """Openings of a step that speaks against the verdict."""
    close: tuple[str, ...]
    """Endings of the last step; `{would}` is `would` or `would not`."""


STYLES: dict[str, Style] = {
    "plain": Style(
        order=("own", "others", "against"),
        related=(
            "The user {liked} {e}, which shares {shared} with the target.",
            "The user {liked} {e} before, and it shares {shared}.",
            "Earlier {e} {was} by the user, and it shares {shared}.",
        ),
        unrelated=(
            "The user {liked} {e}, an item of another kind.",
            "Earlier {e} {was} by the user, though it differs.",
        ),
        neighbour=(
            "Similar users {liked} {e}, which shares {shared} with the target.",
            "Among similar users {e} {was}, and it shares {shared}.",
        ),
        neighbour_plain=(
            "Similar users {liked} {e}, an item of another kind.",
            "Among similar users {e} {was}, though it differs.",
        ),
        peers=(
            "In {e} {some} similar users {liked} the target itself.",
            "The target itself {was} by {some} similar users {e}.",
        ),
        crowd=(
            "In {e} the wider audience {liked} the target.",
            "The target {was} by the wider audience of {some} people {e}.",
        ),
        against=("However,", "On the other hand,"),
        close=(", so the user {would} enjoy it.", ", so overall the user {would} like it."),
    ),
    "balance": Style(
        order=("own", "against", "others"),
        related=(
            "One reason is {e}, which {was} and shares {shared}.",
            "A reason is that the user {liked} {e}, sharing {shared}.",
            "It counts that {e} {was} and shares {shared}.",
        ),
        unrelated=(
            "One reason is {e}, which {was} but is different.",
            "It counts a little that the user {liked} {e}.",
        ),
        neighbour=(
            "One reason is {e}, which {was} by similar users and shares {shared}.",
            "It counts that similar users {liked} {e}, sharing {shared}.",
        ),
        neighbour_plain=(
            "One reason is {e}, which {was} by similar users.",
            "It counts a little that similar users {liked} {e}.",
        ),
        peers=(
            "One reason is {e}, as {some} similar users {liked} the target.",
            "It counts that {some} similar users {liked} the target {e}.",
        ),
        crowd=(
            "One reason is {e}, as the audience {liked} the target.",
            "It counts that {some} people {e} in general {liked} the target.",
        ),
        against=("Against this,", "On the other side,"),
        close=(
            ", and on balance the user {would} enjoy it.",
            ", which tips the balance: the user {would} like it.",
        ),
    ),
    "history": Style(
        order=("own", "own", "against", "others"),
        related=(
            "Looking back, the user {liked} {e} with its {shared}.",
            "The past shows {e}, which {was} and shares {shared}.",
            "In the history {e} {was}, and it shares {shared}.",
        ),
        unrelated=(
            "Looking back, the user {liked} {e}, which is different.",
            "In the history {e} {was}, an item of another kind.",
        ),
        neighbour=(
            "People with a similar history {liked} {e} with its {shared}.",
            "In similar histories {e} {was}, and it shares {shared}.",
        ),
        neighbour_plain=(
            "People with a similar history {liked} {e} as well.",
            "In similar histories {e} {was}, an item of another kind.",
        ),
        peers=(
            "As {e} shows, {some} people with a similar history {liked} the target.",
            "In similar histories the target {was}, as {e} shows.",
        ),
        crowd=(
            "As {e} shows, {some} earlier raters in all {liked} the target.",
            "In general the target {was} so far, as {e} shows.",
        ),
        against=("Still,", "But then,"),
        close=(", so given this past the user {would} enjoy it.", ", so the user {would} like this one."),
    ),
    "community": Style(
        order=("others", "others", "own", "against"),
        related=(
            "For this user, {e} {was} and it shares {shared}.",
            "The user in person {liked} {e}, which has {shared} too.",
            "The user's own choice {e} {was}, sharing {shared}.",
        ),
        unrelated=(
            "For this user, {e} {was} but it is different.",
            "The user in person {liked} {e}, of another kind.",
        ),
        neighbour=(
            "The community of similar users {liked} {e}, sharing {shared}.",
            "Users of the same taste {liked} {e}, which has {shared} too.",
        ),
        neighbour_plain=(
            "The community of similar users {liked} {e} as well.",
            "Users of the same taste {liked} {e}, of another kind.",
        ),
        peers=(
            "Users of the same taste {liked} the target, see {e}.",
            "The target {was} by {some} users of the same taste {e}.",
        ),
        crowd=(
            "The community at large {liked} the target, see {e}.",
            "The target {was} by {some} users at large {e}.",
        ),
        against=("Yet,", "Even so,"),
        close=(", so in this circle the user {would} enjoy it.", ", so here the user {would} like it."),
    ),
    "features": Style(
        order=("own", "others", "own", "against"),
        related=(
            "With {shared} in common, {e} {was} by the user.",
            "The target shares {shared} with {e}, which {was} by the user.",
            "Features in common with {e} are {shared}, and it {was}.",
        ),
        unrelated=(
            "With no feature in common, {e} {was} by the user.",
            "The features differ from {e}, which {was} by the user.",
        ),
        neighbour=(
            "With {shared} in common, {e} {was} by similar users.",
            "The target shares {shared} with {e}, which {was} by similar users.",
        ),
        neighbour_plain=(
            "With no feature in common, {e} {was} by similar users.",
            "The features differ from {e}, which {was} by similar users.",
        ),
        peers=(
            "Beyond features, the target {was} by similar users {e}.",
            "With these features the target {was} by {some} similar users {e}.",
        ),
        crowd=(
            "Beyond features, the target {was} by the audience {e}.",
            "With these features the target {was} by {some} people {e}.",
        ),
        against=("By contrast,", "In contrast,"),
        close=(
            ", so the features suggest the user {would} enjoy it.",
            ", which suggests the user {would} like it.",
        ),
    ),
    "doubt": Style(
        order=("against", "own", "others"),
        related=(
            "Looking closer, {e} {was} and shares {shared} with it.",
            "To be fair, the user {liked} {e}, sharing {shared}.",
            "What matters is {e}, which {was} and shares {shared}.",
        ),
        unrelated=(
            "To be fair, the user {liked} {e} of another kind.",
            "What matters is {e}, which {was} though different.",
        ),
        neighbour=(
            "To be fair, similar users {liked} {e}, sharing {shared}.",
            "What matters is {e}, which similar users {liked}, sharing {shared}.",
        ),
        neighbour_plain=(
            "To be fair, similar users {liked} {e} of another kind.",
            "What matters is {e}, which similar users {liked}.",
        ),
        peers=(
            "To be fair, {some} similar users {liked} the target {e}.",
            "What matters is {e}: similar users {liked} the target.",
        ),
        crowd=(
            "To be fair, {some} people {e} {liked} the target.",
            "What matters is {e}: the audience {liked} the target.",
        ),
        against=("A doubt remains:", "There is a doubt:"),
        close=(
            ", so after all the user {would} enjoy it.",
            ", so despite doubts the user {would} like it.",
        ),
    ),
}


def vague(count: int) -> str:
    """A count as a person would put it."""
    return next((word for most, word in COUNTS if count <= most), MOST)
