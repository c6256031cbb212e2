"""The direct part of the student's score: by hand, what learns from what, how it comes back from a file."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ray_app.collab.features import USER_SCALARS, VISIT
from ray_app.evaluation.ranking import auc
from ray_app.student.direct import (
    BIAS_PAIRS,
    CROSS_ENTROPY,
    MEMBERS,
    Direct,
    Rows,
    batches,
    pairs_of,
    pairwise_loss,
)
from ray_app.student.model import Projector

WIDTHS = {"user": USER_SCALARS, "item": 4, "pair": 3}
LENGTHS = {"user": USER_SCALARS + len(VISIT) + 2, "item": 6, "pair": 3}
ROWS = 8


def vectors(rows: int = ROWS) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, width, generator=rng) for name, width in LENGTHS.items()}


def projector(share: float = 0.6) -> Projector:
    """Its user bias is 2 x (before the visit) - 1 x (in the visit) + .5."""
    torch.manual_seed(0)
    found = Projector(WIDTHS, 32, share=share).eval()
    if found.direct is not None:
        with torch.no_grad():
            for member in found.direct.members:
                member.bias.weight.copy_(torch.tensor([[2.0, -1.0]]))
                member.bias.bias.fill_(0.5)
    return found


def direct(reader: Projector) -> Direct:
    assert reader.direct is not None
    return reader.direct


def preferred(reader: Projector, read: torch.Tensor) -> torch.Tensor:
    return torch.stack([member.preference(read).squeeze(1) for member in direct(reader).members]).mean(0)


def scored(reader: Projector, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return direct(reader)(*reader.read(given))


LABELS = torch.tensor([1, 0, 1, 0, 1, 1, 0, 0])
USERS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])


def test_the_score_is_the_mean_preference_plus_a_line_through_the_visit():
    reader, given = projector(), vectors()
    before, within = given["user"][:, list(VISIT)].T
    read = torch.cat([given[name][:, :width] for name, width in WIDTHS.items()], 1)
    expected = preferred(reader, read) + 2 * before - within + 0.5
    assert torch.allclose(scored(reader, given), expected, atol=1e-5)
    given["item"][:, WIDTHS["item"] :] += 7  # content and latent parts are not read
    assert torch.allclose(scored(reader, given), expected, atol=1e-5)


def test_it_standardises_what_it_was_fitted_on_and_no_value_runs_away():
    reader, given = projector(), vectors(200)
    given["user"] = 5 + 3 * given["user"]
    given["user"][:, 0] = 4.0
    reader.fit_scaling(given)
    visit = given["user"][:, list(VISIT)]
    before, within = ((visit - visit.mean(0)) / visit.std(0)).T
    far = {name: values.clone() for name, values in given.items()}
    far["user"][:, VISIT[0]] = 1e9
    with torch.no_grad():
        moved = scored(reader, far) - scored(reader, given)
    assert torch.allclose(moved, 2 * (6 - before), atol=1e-3)
    assert torch.isfinite(scored(reader, far)).all()
    assert float(within.std()) == pytest.approx(1, abs=1e-5)


def test_the_preference_learns_from_pairs_and_half_the_cross_entropy_and_the_bias_from_the_rest():
    reader, given = projector(), vectors()
    member, read = direct(reader).members[0], reader.read(given)
    loss = member.loss(*read, LABELS, USERS)
    preference, bias = member(*read)
    score, labels = preference + bias, LABELS.float()
    entropy = F.binary_cross_entropy_with_logits(score, labels)
    own = pairwise_loss(preference, pairs_of(LABELS, USERS)) + CROSS_ENTROPY * entropy
    others = entropy + BIAS_PAIRS * pairwise_loss(score, pairs_of(LABELS, USERS))
    assert float(loss.detach()) == pytest.approx(float((own + others).detach()), rel=1e-5)

    loss.backward()
    for weight, part in ((member.preference[-1].weight, own), (member.bias.weight, others)):
        assert weight.grad is not None
        expected = torch.autograd.grad(part, [weight], retain_graph=True)[0]
        assert torch.allclose(weight.grad, expected, atol=1e-6)


def test_it_learns_whom_and_what_from_rows_that_say_so():
    """A pair's first statistic is what a user likes; before the visit user 0 liked all, user 1 nothing."""
    reader, given = projector(), vectors(600)
    users = torch.arange(600) % 2
    given["user"][:, VISIT[0]] = 1.0 - 2 * users
    labels = (given["pair"][:, 0] + given["user"][:, VISIT[0]] > 0).long()
    reader.fit_scaling(given)
    model = direct(reader)
    model.fit(Rows(*reader.read(given), labels, users), seed=3)
    assert not any(member.training for member in model.members)
    with torch.no_grad():
        preference = preferred(reader, reader.read(given)[0])
        score = scored(reader, given)
    for user in (0, 1):
        assert auc(labels[users == user], preference[users == user]) > 0.95
    assert auc(labels, score) > auc(labels, preference) + 0.02
    for member in model.members:
        assert member.bias.weight[0, 0].item() > 0
    starts = {tuple(member.preference[-1].weight[0, :3].tolist()) for member in model.members}
    assert len(starts) == MEMBERS

    again = projector()
    again.fit_scaling(given)
    direct(again).fit(Rows(*again.read(given), labels, users), seed=3)
    assert torch.equal(scored(again.eval(), given), scored(reader, given))


def test_a_pass_has_every_row_once_and_keeps_a_users_rows_together():
    users = np.random.default_rng(0).integers(0, 40, 1000)
    found = batches(users, np.random.default_rng(1))
    assert sorted(np.concatenate(found)) == list(range(1000))
    assert {len(batch) for batch in found} <= {83, 84}
    runs = [len(list(rows)) for batch in found for _, rows in groupby(users[batch])]
    # About 25 rows a user, at most 16 of them together: two runs each, and a few cut by a batch's end.
    assert max(runs) <= 32
    assert len(runs) < 40 * 2 + len(found)
    assert not np.array_equal(found[0], batches(users, np.random.default_rng(2))[0])


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_projector_brings_it_along_and_weighs_it(share):
    reader = projector(share)
    reader.fit_scaling(vectors(50))
    again = Projector.load(reader.state_dict(), 32).eval()
    logits, given = torch.linspace(-1, 1, ROWS), vectors()
    with torch.no_grad():
        score = again.score(logits, given)
        assert torch.equal(score, reader.score(logits, given))
        if share:
            assert again.direct is not None
            assert torch.allclose(score, 0.4 * logits + 0.6 * scored(again, given), atol=1e-6)
        else:
            assert again.direct is None
            assert torch.equal(score, logits)


def test_pairs_are_those_of_one_user_with_different_labels():
    """User 0: 1.0 liked, 0.5 not; user 1: -1.0 liked, 2.0 and 0.0 not; user 2 has no pair."""
    logits = torch.tensor([1.0, 0.5, -1.0, 2.0, 0.0, 9.0])
    labels, users = torch.tensor([1, 0, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 1, 2])
    expected = np.mean(np.log1p(np.exp([-(1.0 - 0.5), 1.0 + 2.0, 1.0 + 0.0])))
    assert float(pairwise_loss(logits, pairs_of(labels, users))) == pytest.approx(expected, rel=1e-6)
    assert float(pairwise_loss(logits[:1], pairs_of(labels[:1], users[:1]))) == 0
