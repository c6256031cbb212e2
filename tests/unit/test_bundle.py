"""The bundle: opened whole or not at all, and what it says of users, items and adapters."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from ray_app.bundle import MANIFEST, Bundle, seal
from ray_app.errors import ArtifactError, NotFoundError, RationaleError
from ray_app.records import Interaction
from tests.bundles import EACH, EXPERTS, ITEMS_COUNT, USERS_COUNT, VERSION, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


def event(bundle: Bundle, item: str, after: int, label: int = 1, rating: float | None = None) -> Interaction:
    return Interaction(user_id="u0", item_id=item, timestamp=bundle.cut + after, label=label, rating=rating)


def test_a_folder_without_a_manifest_says_what_to_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no bundle\.json: run the pipeline until stage publish"):
        Bundle.open(tmp_path)
    with pytest.raises(ArtifactError, match="gone"):
        Bundle.open(tmp_path / "gone")


@pytest.mark.parametrize(
    "name",
    [
        "items.parquet",
        "users.parquet",
        "histories.npz",
        "state.npz",
        "latent.npy",
        "clusters.npz",
        "calibration.json",
        "swing/items.indices.npy",
        "swing/users.user_x.npy",
    ],
)
def test_a_bundle_with_a_file_missing_is_one_line_that_names_it(bundle, tmp_path, name):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    (copy / name).unlink()
    with pytest.raises(ArtifactError) as caught:
        Bundle.open(copy)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


GLOBAL_FILE = f"adapters/global@{VERSION}/adapter_model.safetensors"


@pytest.mark.parametrize("name", ["trees.txt", "latent.npy", "swing/items.indices.npy", GLOBAL_FILE])
def test_a_damaged_file_is_one_line_that_names_it(bundle, tmp_path, name):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).touch()
    seal(copy, json.loads((copy / MANIFEST).read_bytes()))
    Bundle.open(copy)
    with open(copy / name, "r+b") as file:
        first = file.read(1) or b"a"
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    with pytest.raises(ArtifactError, match=rf"{name} not as published: copy the bundle again") as caught:
        Bundle.open(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_the_global_adapter_stands_in_for_an_experts_that_is_lost(bundle, tmp_path, damage):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    for name in ("global", *EXPERTS):
        folder = copy / "adapters" / f"{name}@{VERSION}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(name)
    seal(copy, json.loads((copy / MANIFEST).read_bytes()))
    whole = Bundle.open(copy)
    lost = copy / "adapters" / f"expert-0@{VERSION}" / "adapter_model.safetensors"
    lost.unlink() if damage == "missing" else lost.write_text("another")
    left = Bundle.open(copy)
    assert (whole.experts, whole.lost) == (EXPERTS, [])
    assert (left.experts, left.lost) == (["expert-1"], ["expert-0"])
    assert list(left.adapters) == ["global", "expert-1"]
    spread = left.clusters.centres / left.clusters.scale + left.clusters.mean
    for user, cluster in zip(spread, left.clusters.names, strict=True):
        assert left.missed(user) == ("expert-0" if whole.choice(user).weights.get("expert-0") else "")
        if whole.choice(user).weights == {cluster: 1.0}:
            assert left.choice(user).name == ("global" if cluster == "expert-0" else cluster)
    assert any(left.missed(user) for user in spread)
    assert not all(left.missed(user) for user in spread)


def test_a_bundle_without_hashes_is_refused(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    facts = json.loads((copy / MANIFEST).read_bytes())
    del facts["files"]
    (copy / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match="lists no hashes of its files: run stage publish again"):
        Bundle.open(copy)


def test_a_manifest_that_is_no_json_is_one_line(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(RationaleError, match=r"bundle\.json is not JSON"):
        Bundle.open(copy)


def test_a_bundle_of_another_release_names_the_key_it_does_not_know(bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    facts = json.loads((copy / MANIFEST).read_bytes())
    facts["config"]["serve"]["old"] = 1
    (copy / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(RationaleError, match=r"bundle\.json: unknown key serve\.old"):
        Bundle.open(copy)


def test_it_opens_with_what_its_manifest_says(bundle):
    facts = json.loads((bundle.path / MANIFEST).read_bytes())
    assert (bundle.version, bundle.cut, bundle.experts) == (VERSION, facts["cut"], EXPERTS)
    assert bundle.config.model_dump(mode="json") == facts["config"]
    assert (len(bundle.items), len(bundle.user_codes)) == (ITEMS_COUNT, USERS_COUNT)
    assert bundle.calibration == {"global": (1.0, 0.0), "expert-0": (0.8, 0.1)}


def test_adapters_carry_the_version(bundle):
    assert bundle.adapter("global") == bundle.path / "adapters" / f"global@{VERSION}"
    assert bundle.adapter("expert-1").name == f"expert-1@{VERSION}"


def test_items_are_known_by_id(bundle):
    assert bundle.item_code("i7") == 7
    with pytest.raises(NotFoundError, match=f"item 'i999' does not exist in bundle {VERSION}"):
        bundle.item_code("i999")


def test_a_history_is_what_the_bundle_has_seen_in_time_order(bundle):
    history = bundle.history("u3", [])
    assert len(history) == EACH
    assert (np.diff(history.timestamps) >= 0).all()
    assert history.timestamps[-1] <= bundle.cut
    assert set(np.unique(history.labels)) <= {0, 1}
    assert np.array_equal(history.labels, history.ratings >= bundle.config.data.positive_rating)


def test_later_events_follow_in_time_order_and_only_those_after_the_cut(bundle):
    own = bundle.history("u0", [])
    later = [
        event(bundle, "i9", after=20, label=0),
        event(bundle, "i5", after=10, rating=4.5),
        event(bundle, "i1", after=0),
        event(bundle, "i2", after=-50),
        event(bundle, "not an item", after=30),
    ]
    history = bundle.history("u0", later)
    assert len(history) == len(own) + 2
    assert history.items[-2:].tolist() == [5, 9]
    assert history.labels[-2:].tolist() == [1, 0]
    assert history.ratings[-2] == 4.5
    assert np.isnan(history.ratings[-1])
    assert history.timestamps[-2:].tolist() == [bundle.cut + 10, bundle.cut + 20]
    rates = bundle.statistics(np.array([5, 9], np.int32))[:, 1]
    assert history.residuals[-2:] == pytest.approx(np.array([1, 0]) - rates, rel=1e-6)
    for name in ("items", "labels", "ratings", "residuals", "timestamps"):
        kept, whole = getattr(own, name), getattr(history, name)
        assert kept.dtype == whole.dtype
        assert np.array_equal(whole[: len(own)], kept, equal_nan=True)


def test_a_user_the_bundle_never_saw_has_later_events_alone(bundle):
    assert len(bundle.history("stranger", [])) == 0
    assert bundle.history("stranger", [event(bundle, "i4", after=5)]).items.tolist() == [4]
    assert len(bundle.history(f"u{USERS_COUNT - 1}", [])) == 0


def test_a_later_like_moves_the_vectors_towards_what_was_liked(bundle):
    now, targets = bundle.cut + 100, np.arange(ITEMS_COUNT)
    before = bundle.vectors(bundle.history("u0", []), targets, now)
    after = bundle.vectors(bundle.history("u0", [event(bundle, "i5", after=10)]), targets, now)
    assert (after["user"][:, 0] > before["user"][:, 0]).all()
    assert np.array_equal(after["item"], before["item"])
    assert not np.array_equal(after["pair"], before["pair"])


def test_an_empty_history_can_be_asked_about(bundle):
    stranger = bundle.history("stranger", [])
    vectors = bundle.vectors(stranger, np.arange(5), bundle.cut + 1)
    assert all(np.isfinite(values).all() for values in vectors.values())
    assert bundle.like_rate(stranger) == pytest.approx(bundle.state.global_rate)
    choice = bundle.choice(vectors["user"][0])
    assert sum(choice.weights.values()) == pytest.approx(1)
    assert set(choice.weights) <= {*EXPERTS, "global"}


def test_an_item_nobody_has_rated_gets_the_rate_of_its_kind_and_finite_vectors(bundle):
    state = bundle.state
    nobody = {name: getattr(state, name).copy() for name in ("count", "positives", "deviation")}
    for values in nobody.values():
        values[7] = 0
    cold = replace(bundle, state=replace(state, **nobody))
    count, rate, effect = cold.statistics(np.array([7], np.int32))[0]
    features = [cold.catalogue.vocabulary.index(name) for name in cold.items[7].features]
    g = state.global_rate
    kinds = (state.feature_positives[features] + 20 * g) / (state.feature_count[features] + 20)
    assert (count, rate, effect) == (0, pytest.approx(kinds.mean()), 0)
    vectors = cold.vectors(cold.history("u0", []), np.array([7]), cold.cut + 1)
    assert all(np.isfinite(values).all() for values in vectors.values())
    assert vectors["item"][0].any()


def test_no_target_is_no_vector(bundle):
    vectors = bundle.vectors(bundle.history("u0", []), np.empty(0, np.int64), bundle.cut + 1)
    assert [len(values) for values in vectors.values()] == [0, 0, 0]
