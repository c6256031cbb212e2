"""BLEURT (Sellam et al., ACL 2020), where a checkpoint is at hand; without one, a record that says so.

torch and transformers are imported by name, inside the functions: a report without BLEURT never loads
them, and the rest of `ray_app.evaluation` stays free of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from ray_app.errors import DataError, EngineError

MAX_TOKENS = 512
BATCH = 16


def bleurt(references: Sequence[str], hypotheses: Sequence[str], checkpoint: Path | None) -> dict[str, Any]:
    """`{"computed": True, "value": mean}`, or `{"computed": False, "reason": ...}` without a checkpoint.

    `checkpoint` is a folder with BLEURT-20 for PyTorch (`config.json` of model type `bleurt`, weights,
    `spm.model`) or with a BLEURT that transformers knows as a sequence classifier of one label.
    Raises EngineError if the folder is there and cannot be used.
    """
    if len(references) != len(hypotheses) or not references:
        raise DataError(
            f"{len(references)} references for {len(hypotheses)} hypotheses: give one each, at least one"
        )
    if checkpoint is None or not (Path(checkpoint) / "config.json").is_file():
        where = "(evaluate.bleurt is not set)" if checkpoint is None else str(checkpoint)
        return {"computed": False, "reason": f"not computed: no BLEURT checkpoint at {where}"}
    score = load(Path(checkpoint))
    values = [
        value
        for start in range(0, len(references), BATCH)
        for value in score(references[start : start + BATCH], hypotheses[start : start + BATCH])
    ]
    return {"computed": True, "value": sum(values) / len(values)}


Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]


def load(checkpoint: Path) -> Scorer:
    """A function of references and hypotheses that gives one score per pair."""
    config = json.loads((checkpoint / "config.json").read_text())
    try:
        return _bleurt20(checkpoint, config) if config.get("model_type") == "bleurt" else _auto(checkpoint)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EngineError(
            f"BLEURT checkpoint {checkpoint} cannot be loaded: {' '.join(str(error).split())[:200]}: "
            "give a complete PyTorch checkpoint such as BLEURT-20"
        ) from error


def _auto(checkpoint: Path) -> Scorer:
    torch, transformers = import_module("torch"), import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, local_files_only=True)
    model.eval()

    def score(references: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        inputs = tokenizer(
            list(references),
            list(hypotheses),
            padding=True,
            truncation=True,
            max_length=min(MAX_TOKENS, model.config.max_position_embeddings),
            return_tensors="pt",
        )
        with torch.inference_mode():
            return model(**inputs).logits.flatten().tolist()

    return score


def _bleurt20(checkpoint: Path, config: dict[str, Any]) -> Scorer:
    """BLEURT-20 is a RemBERT (its embeddings are narrower than its layers) with other weight names."""
    torch, transformers = import_module("torch"), import_module("transformers")
    pieces = import_module("sentencepiece").SentencePieceProcessor(model_file=str(checkpoint / "spm.model"))
    shape = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    shape |= {"input_embedding_size": config["embedding_size"], "num_labels": 1}
    shape |= {"bos_token_id": None, "eos_token_id": None}
    model = transformers.RemBertForSequenceClassification(transformers.RemBertConfig(**shape))
    weights = {
        name.replace("bleurt.", "rembert.", 1).replace(
            "embedding_projection", "embedding_hidden_mapping_in"
        ): w
        for name, w in _weights(checkpoint).items()
        if not name.endswith("position_ids")
    }
    model.load_state_dict(weights)
    model.eval()
    start, separator, pad = (pieces.piece_to_id(name) for name in ("[CLS]", "[SEP]", "<pad>"))

    def score(references: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        rows, kinds = [], []
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            first, second = _fit(pieces.encode(reference), pieces.encode(hypothesis), MAX_TOKENS - 3)
            rows.append([start, *first, separator, *second, separator])
            kinds.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
        width = max(map(len, rows))
        blank = pad if pad >= 0 else 0
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([row + [blank] * (width - len(row)) for row in rows]),
                token_type_ids=torch.tensor([kind + [0] * (width - len(kind)) for kind in kinds]),
                attention_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            )
        return output.logits.flatten().tolist()

    return score


def _fit(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Shorten the longer of the two, token by token, until both fit (BERT's rule for pairs)."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def _weights(checkpoint: Path) -> dict[str, Any]:
    safe = checkpoint / "model.safetensors"
    if safe.is_file():
        return import_module("safetensors.torch").load_file(safe)
    return import_module("torch").load(
        checkpoint / "pytorch_model.bin", map_location="cpu", weights_only=True
    )
