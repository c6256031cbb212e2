"""Adapters that do not belong together are refused in one line, before an engine starts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from ray_app.errors import ArtifactError
from ray_app.student.adapters import check_adapters, readable

HIDDEN = 16


def adapter(folder: Path, rank: int = 8, hidden: int = HIDDEN) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": np.zeros((rank, hidden), np.float32),
        f"{layer}.lora_B.weight": np.zeros((hidden, rank), np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters_of_one_run_fit(tmp_path):
    adapters = {name: adapter(tmp_path / name) for name in ("global", "expert-0")}
    assert check_adapters(adapters, HIDDEN) == 8


def test_an_adapter_of_another_rank_is_named(tmp_path):
    adapters = {"global": adapter(tmp_path / "global"), "expert-0": adapter(tmp_path / "expert-0", rank=4)}
    with pytest.raises(ArtifactError, match="adapter expert-0 has rank 4, the global one 8"):
        check_adapters(adapters, HIDDEN)


def test_an_adapter_of_another_base_is_named(tmp_path):
    adapters = {"global": adapter(tmp_path / "global", hidden=32)}
    with pytest.raises(
        ArtifactError, match=r"global: .*lora_A.* is \[8, 32\].* \[8, 16\]: it is of another base"
    ):
        check_adapters(adapters, HIDDEN)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 40])
def test_a_missing_or_truncated_adapter_is_named(tmp_path, file, left):
    path = adapter(tmp_path / "global") / file
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[: min(left, len(content) - 2)])
    with pytest.raises(
        ArtifactError, match=r"adapter global in .* is missing or damaged .*train and publish"
    ):
        check_adapters({"global": path.parent}, HIDDEN)


@pytest.mark.parametrize("left", [0, 10, 0.5, 0.99])
def test_a_truncated_torch_checkpoint_is_one_line(tmp_path, left):
    path = tmp_path / "projector.pt"
    torch.save({"weight": torch.zeros(100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    with (
        pytest.raises(ArtifactError, match="the projector is missing or damaged") as error,
        readable("the projector"),
    ):
        torch.load(path, weights_only=True)
    assert "\n" not in str(error.value)
