"""The student: its losses against a plain computation, what learns in which phase, and Llama3-8B's LoRA."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.train_checkpoints import WEIGHTS, Interrupted, learning, sizes_in, whole
from pipelines.train_data import steps_of, stream
from pipelines.train_loop import schedule
from ray_app.collab.features import USER_SCALARS, VISIT
from ray_app.config import Config, LoraSection, load, validate
from ray_app.student.direct import pairs_of, pairwise_loss
from ray_app.student.model import (
    SOFT_NAMES,
    Batch,
    Projector,
    Student,
    trainable,
    with_lora,
)
from ray_app.student.phases import LANGUAGE, Phase, build, optimizer, phases, save, save_start
from ray_app.student.tokens import train_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs"
WIDTHS = {"user": USER_SCALARS, "item": 4, "pair": 3}
LENGTHS = WIDTHS | {"user": USER_SCALARS + len(VISIT)}
YES, NO, VOCAB = 7, 8, 40


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads cost more than they give at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def student(lora: bool = False, share: float = 0.0) -> Student:
    lm = with_lora(tiny(), LoraSection(r=2, alpha=4), "default") if lora else tiny()
    return Student(lm, Projector(WIDTHS, 32, share=share), YES, NO)


def batch() -> Batch:
    """A Yes/No row of 4 tokens (padded to 7) and two reasoning rows, one without a pair vector."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(9, VOCAB, (3, 7), generator=rng)
    return Batch(
        ids=ids,
        vectors={name: torch.randn(3, width, generator=rng) for name, width in LENGTHS.items()},
        soft={
            "user": torch.tensor([1, 1, 1]),
            "item": torch.tensor([2, 2, 3]),
            "pair": torch.tensor([-1, 3, 4]),
        },
        answer=torch.tensor([2, 3, 2]),
        labels=torch.tensor([1, 0, 1]),
        users=torch.tensor([4, 4, 5]),
        text_rows=torch.tensor([0, 1, 1, 2, 2, 2]),
        text_positions=torch.tensor([2, 4, 5, 3, 4, 5]),
        text_targets=torch.tensor([ids[0, 3], ids[1, 5], ids[1, 6], ids[2, 4], ids[2, 5], ids[2, 6]]),
        answer_weight=torch.tensor([0.9, 0.1, 0.3]),
        text_weight=torch.tensor([0.1, 0.9, 0.7]),
    )


def plain_loss(model: Student, given: Batch) -> tuple[list[float], list[float]]:
    """(answer, text) loss of each row, one row at a time, from all logits of the LM."""
    answers, texts = [], []
    for row in range(len(given.ids)):
        embeddings = model.lm.get_input_embeddings()(given.ids[row : row + 1]).clone()
        for name, positions in given.soft.items():
            if positions[row] >= 0:
                embeddings[0, positions[row]] = model.projector(name, given.vectors[name][row])
        logits = model.lm(inputs_embeds=embeddings).logits[0]
        z = logits[given.answer[row], YES] - logits[given.answer[row], NO]
        probability = torch.sigmoid(z)
        answers.append(float(-torch.log(probability if given.labels[row] else 1 - probability)))
        own = given.text_rows == row
        text = F.log_softmax(logits, -1)[given.text_positions[own], given.text_targets[own]]
        texts.append(float(-text.mean()))
    return answers, texts


@pytest.mark.parametrize("lora", [False, True])
def test_the_loss_is_the_weighted_sum_of_both_computed_plainly(lora):
    model, given = student(lora), batch()
    with torch.no_grad():
        out = model(given)
        answers, texts = plain_loss(model, given)
    expected = [
        a * float(wa) + t * float(wt)
        for a, t, wa, wt in zip(answers, texts, given.answer_weight, given.text_weight, strict=True)
    ]
    assert float(out["loss"]) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(out["answer"]) == pytest.approx(np.mean(answers), rel=1e-5)
    assert float(out["text"]) == pytest.approx(np.mean(texts[1:]), rel=1e-5)


def test_padding_and_other_rows_change_no_logit():
    model, given = student(), batch()
    with torch.no_grad():
        logits = model(given)["logits"]
        given.ids[0, 4:] = 9
        again = model(given)["logits"]
    assert torch.allclose(logits, again, atol=1e-6)


def test_a_soft_token_is_the_projection_and_its_filler_does_not_matter():
    model, given = student(), batch()
    with torch.no_grad():
        embedded = model.embed(given.ids, given.vectors, given.soft)
        assert torch.allclose(embedded[1, 3], model.projector("pair", given.vectors["pair"][1:2])[0])
        assert torch.equal(embedded[0, 3], model.lm.get_input_embeddings().weight[given.ids[0, 3]])
        before = model(given)["logits"]
        given.ids[1, 3] = 9
        assert torch.equal(model(given)["logits"], before)
        given.vectors["pair"][1] += 1
        assert not torch.allclose(model(given)["logits"][1], before[1])


def test_the_projector_standardises_what_it_was_fitted_on():
    projector = Projector(WIDTHS, 32)
    values = {name: 5 + 3 * torch.randn(200, width) for name, width in WIDTHS.items()}
    values["user"][:, 0] = 4.0
    projector.fit_scaling(values)
    assert projector.widths == WIDTHS
    scaled = (values["item"] - projector.get_buffer("mean_item")) * projector.get_buffer("scale_item")
    assert torch.allclose(scaled.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(scaled.std(0), torch.ones(4), atol=1e-5)
    assert torch.isfinite(projector("user", values["user"] + 1)).all()


def test_the_projector_reads_the_leading_entries_and_no_others():
    projector = Projector({"user": 2}, 32)
    projector.fit_scaling({"user": torch.randn(50, 5)})
    vector = torch.randn(1, 5)
    other = torch.cat([vector[:, :2], vector[:, 2:] + 7], 1)
    assert torch.equal(projector("user", vector), projector("user", other))


def test_the_pairwise_loss_is_added_by_its_weight():
    model, given = student(), batch()
    given.labels[:] = torch.tensor([1, 0, 1])
    plain = model(given)
    model.pair_weight = 2.0
    pairs = pairwise_loss(plain["logits"], pairs_of(given.labels, given.users))
    assert float(pairs.detach()) > 0
    assert float(model(given)["loss"].detach()) == pytest.approx(
        float((plain["loss"] + 2 * pairs).detach()), rel=1e-5
    )


def test_a_direct_part_gives_its_share_of_the_score_and_the_losses_are_the_lms():
    torch.manual_seed(0)
    model, given = student(share=0.6).eval(), batch()
    alone = student().eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        assert float(model(given)["loss"]) == float(alone(given)["loss"])
        own = model.projector.direct(*model.projector.read(given.vectors))
        expected = 0.4 * model(given)["logits"] + 0.6 * own
        assert torch.allclose(model.answer_logits(model.hidden(given), given), expected, atol=1e-6)


def test_a_lora_phase_learns_lora_and_projector_and_nothing_else():
    model = student(lora=True)
    model(batch())["loss"].backward()
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert all("lora_" in name or name.startswith("projector.") for name in learning)
    assert {name.split(".")[-4] for name in learning if "lora_" in name} <= {"q_proj", "v_proj", "self_attn"}
    assert {name for name in with_gradient if name.startswith("projector.")} == {
        name for name in learning if name.startswith("projector.")
    }
    # lora_B starts at zero, so at first only it has a gradient; that is enough to leave the start.
    assert {name for name in learning if "lora_B" in name} <= with_gradient
    assert with_gradient <= learning


def test_a_step_on_one_batch_lowers_both_losses():
    model, given = student(lora=True), batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(given)
    for _ in range(20):
        optimizer.zero_grad()
        model(given)["loss"].backward()
        optimizer.step()
    last = model(given)
    assert float(last["answer"]) < float(first["answer"])
    assert float(last["text"]) < float(first["text"])


BOOTSTRAP = {"hidden": 32, "layers": 1, "heads": 1, "vocab": 400}
SMALL = validate({"student": {"bootstrap": BOOTSTRAP, "direct": 0.6}}, "test")


def test_phases_come_in_order_and_a_given_base_needs_none_of_its_own():
    assert [phase.name for phase in phases(SMALL, 3)] == [
        "language",
        "answers",
        "global",
        "expert-0",
        "expert-1",
        "expert-2",
    ]
    given = Config.model_validate({"student": {"base": "some/model"}})
    assert [phase.name for phase in phases(given, 1)] == ["global", "expert-0"]
    assert [phase.warm for phase in phases(SMALL, 1)] == [False, False, False, True]


def begin(folder: Path) -> Projector:
    """A projector's beginning in a folder, as stage train fits it."""
    torch.manual_seed(5)
    projector = Projector(WIDTHS, 1, share=0.6)
    projector.get_buffer("mean_user").fill_(2)
    save_start(projector, folder)
    return projector


def test_each_phase_starts_from_the_one_before_and_learns_its_part(tmp_path):
    tokenizer = train_tokenizer(["a plain text"], ["War"], 400)
    every = {phase.name: phase for phase in phases(SMALL, 1)}
    begun = begin(tmp_path)
    language = build(every["language"], SMALL, tmp_path, tokenizer, WIDTHS)
    direct = language.projector.direct
    # The direct part is fitted before the phases, and none of them changes it.
    assert all(torch.equal(p, q) for p, q in zip(direct.parameters(), begun.direct.parameters(), strict=True))
    fixed = sum(p.numel() for p in direct.parameters())
    assert trainable(language) == sum(p.numel() for p in language.parameters()) - fixed
    with torch.no_grad():
        language.projector.get_buffer("mean_user").fill_(3)
        language.lm.model.norm.weight.fill_(0.7)
    save(every["language"], language, tmp_path)
    assert not (tmp_path / "language" / "projector.pt").exists()

    answers = build(every["answers"], SMALL, tmp_path, tokenizer, WIDTHS)
    assert trainable(answers) == trainable(language)
    assert all(
        torch.equal(p, q) for p, q in zip(answers.lm.parameters(), language.lm.parameters(), strict=True)
    )
    assert float(answers.projector.get_buffer("mean_user")[0]) == 2
    with torch.no_grad():
        answers.projector.get_buffer("mean_user").fill_(3)
        answers.lm.model.norm.weight.fill_(0.5)
    save(every["answers"], answers, tmp_path)

    general = build(every["global"], SMALL, tmp_path, tokenizer, WIDTHS)
    assert float(general.projector.get_buffer("mean_user")[0]) == 3
    base = general.lm.get_base_model().model
    assert torch.equal(base.embed_tokens.weight, language.lm.model.embed_tokens.weight)
    assert float(base.norm.weight[0]) == 0.5
    lora = 1 * 2 * 8 * (32 + 32)
    assert trainable(general) == lora + sum(p.numel() for p in general.projector.maps.parameters())
    with torch.no_grad():
        for name, parameter in general.lm.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    save(every["global"], general, tmp_path)

    expert = build(every["expert-0"], SMALL, tmp_path, tokenizer, WIDTHS)
    assert trainable(expert) == lora
    assert float(expert.projector.get_buffer("mean_user")[0]) == 3
    started = [p.detach() for name, p in expert.lm.named_parameters() if "lora_B" in name]
    assert len(started) == 2
    assert all(torch.equal(p, torch.full_like(p, 0.01)) for p in started)
    save(every["expert-0"], expert, tmp_path)
    assert not (tmp_path / "expert-0" / "projector.pt").exists()
    assert (tmp_path / "expert-0" / "adapter" / "adapter_model.safetensors").exists()


def test_a_beginning_without_the_direct_part_is_refused(tmp_path):
    tokenizer = train_tokenizer(["a plain text"], ["War"], 400)
    save_start(Projector(WIDTHS, 1), tmp_path)
    with pytest.raises(RuntimeError, match=r"direct\.members"):
        build(Phase(LANGUAGE, 1, 1e-3), SMALL, tmp_path, tokenizer, WIDTHS)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest():
    model, phase = student(), Phase(LANGUAGE, 1, 1e-3, matrix_rate=0.01)
    matrices, rest = optimizer(phase, model, 0.1).param_groups
    assert (matrices["use_muon"], matrices["lr"], rest["lr"]) == (True, 0.01, 1e-3)
    assert len(matrices["params"]) == 7 * model.lm.config.num_hidden_layers
    assert all(p.ndim == 2 for p in matrices["params"])
    counted = sum(p.numel() for group in (matrices, rest) for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())


def test_adamw_gives_the_projector_a_rate_of_its_own_and_none_where_it_is_frozen():
    model, phase = student(lora=True), Phase("global", 1, 1e-3, projector_rate=2e-3)
    adapter, projector = optimizer(phase, model, 0.1).param_groups
    assert (adapter["lr"], projector["lr"]) == (1e-3, 2e-3)
    assert sum(p.numel() for p in projector["params"]) == trainable(model.projector)
    assert sum(p.numel() for p in adapter["params"]) == trainable(model) - trainable(model.projector)
    model.projector.requires_grad_(False)
    assert len(optimizer(Phase("expert-0", 1, 1e-3), model, 0.1).param_groups) == 1


def test_building_a_phase_twice_gives_the_same_start(tmp_path):
    tokenizer = train_tokenizer(["a plain text"], ["War"], 400)
    phase = Phase(LANGUAGE, 1, 1e-3)
    begin(tmp_path)
    one, two = (build(phase, SMALL, tmp_path, tokenizer, WIDTHS).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert schedule(0, 1, 0.1) == 1


ROWS = SimpleNamespace(
    vectors={name: np.zeros((64, width), np.float32) for name, width in WIDTHS.items()},
    tokenizer=SimpleNamespace(pad_token_id=0),
)
"""What `stream` reads of the loop's data."""


def rows(count: int):
    from ray_app.student.batching import Sequence

    return [
        Sequence(n, n % 5, 0, np.arange(4 + n % 3, dtype=np.int32), {}, 1, 1, False) for n in range(count)
    ]


def test_workers_share_the_batches_of_each_step():
    config = validate({"train": {"batch_tokens": 64}}, "test")
    phase = Phase("global", 2.0, 1e-3)
    total = steps_of(rows(60), phase, config, 2)
    whole = [batch.ids for _, batch in stream(rows(60), phase, config, ROWS, 0, 1, 2 * total)]
    parts = [list(stream(rows(60), phase, config, ROWS, rank, 2, total)) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert [step for step, _ in part] == list(range(total))
        for step, batch in part:
            assert torch.equal(batch.ids, whole[2 * step + rank])


def test_a_cluster_without_examples_ends_at_once():
    config, phase = validate({}, "test"), Phase("expert-0", 1.0, 1e-3, 0)
    assert list(stream([], phase, config, ROWS, 0, 1, steps_of([], phase, config, 1))) == []


def test_a_checkpoint_with_a_file_cut_off_or_gone_is_not_resumed(tmp_path, capsys):
    (tmp_path / "state").mkdir()
    weights, place = tmp_path / "state" / "weights.pt", tmp_path / "place-0.json"
    weights.write_bytes(b"x" * 100)
    place.write_text(json.dumps({"phase": "global", "step": 7, "world": 1, "files": sizes_in(tmp_path)}))
    device = torch.device("cpu")
    found = whole(tmp_path, device)
    assert found is not None
    assert (found["step"], found["files"]) == (7, {"state/weights.pt": 100})
    weights.write_bytes(b"x" * 99)
    assert whole(tmp_path, device) is None
    assert "state/weights.pt is damaged, the phase starts over" in capsys.readouterr().out
    weights.unlink()
    assert whole(tmp_path, device) is None
    weights.write_bytes(b"x" * 100)
    assert whole(tmp_path, device) is not None
    place.write_text(place.read_text().replace('"world": 1', '"world": 2'))
    assert whole(tmp_path, device) is None, "the second worker's part is missing"
    place.write_text(place.read_text()[:-5])
    assert whole(tmp_path, device) is None


def test_another_number_of_workers_starts_from_the_weights_of_the_checkpoint(tmp_path):
    trained, fresh = student(lora=True), student(lora=True)
    with torch.no_grad():
        for parameter in learning(trained).values():
            parameter.add_(0.5)
    torch.save({name: p.detach() for name, p in learning(trained).items()}, tmp_path / WEIGHTS)
    Interrupted(tmp_path, step=7, world=2, curve=[]).weights_into(fresh)
    expected = trained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict().items())


def test_another_number_of_workers_goes_on_at_the_same_place_of_the_data():
    last = Interrupted(Path(), step=7, world=2, curve=[{"step": 4, "of": 20, "valid_auc": 0.6}])
    assert last.at(2, 20) == (7, last.curve)
    assert last.at(1, 40) == (14, [{"step": 8, "of": 40, "valid_auc": 0.6}])
    assert last.at(4, 10) == (4, [{"step": 2, "of": 10, "valid_auc": 0.6}])


LLAMA3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("name", ["gpu.yaml", "production.yaml"])
def test_lora_on_q_and_v_of_llama3_8b_has_its_known_size(name):
    config = load(CONFIGS / name)
    assert "Llama-3-8B" in str(config.student.base)
    with torch.device("meta"):
        lm = with_lora(LlamaForCausalLM(LlamaConfig(**LLAMA3_8B)), config.student.lora, "default")
    assert trainable(lm) == 3_407_872
    assert sum(p.numel() for n, p in lm.named_parameters() if "lora_" not in n) == 8_030_261_248
    layer = lm.get_base_model().model.layers[0].self_attn
    assert layer.q_proj.lora_A["default"].weight.shape == (8, 4096)
    assert layer.v_proj.lora_B["default"].weight.shape == (1024, 8)
    assert all(p.device.type == "meta" for p in lm.parameters())


def test_soft_names_are_those_of_the_prompt():
    from ray_app.prompts.student import SOFT_TOKENS

    assert tuple(f"<|{name}|>" for name in SOFT_NAMES) == SOFT_TOKENS
