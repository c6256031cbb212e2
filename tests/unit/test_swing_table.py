"""Neighbour tables: assembly, storage, damage."""

import numpy as np
import pytest

from ray_app.errors import ArtifactError
from ray_app.swing.table import NeighbourTable, Rows


def rows(mains, lengths, indices):
    return Rows(
        np.array(mains, np.int32),
        np.array(lengths, np.int32),
        np.array(indices, np.int32),
        np.array(indices, np.float32) / 10,
        np.array(indices, np.int32) * 2,
        np.ones(len(mains), np.int64),
    )


TABLE = NeighbourTable.assemble(5, [rows([3, 0], [2, 1], [7, 6, 5]), rows([1, 4], [0, 1], [9])])


def test_assembles_parts_in_any_order():
    assert TABLE.indptr.tolist() == [0, 1, 1, 1, 3, 4]
    assert [TABLE.of(i)[0].tolist() for i in range(5)] == [[5], [], [], [7, 6], [9]]
    assert TABLE.of(3)[1].tolist() == pytest.approx([0.7, 0.6])
    assert TABLE.of(3)[2].tolist() == [14, 12]
    assert TABLE.pairs == 4


def test_packs_padded_kernel_rows():
    padded = np.array([[1, 0], [2, 3]], np.int32)
    packed = Rows.pack(
        np.array([8, 9]), (np.array([1, 2]), padded, padded.astype(np.float32), padded, np.array([5, 6]))
    )
    assert packed.indices.tolist() == [1, 2, 3]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("table", [TABLE, NeighbourTable.assemble(2, [])], ids=["full", "empty"])
def test_loads_what_was_saved(tmp_path, table, mmap):
    table.save(tmp_path, "items")
    loaded = NeighbourTable.load(tmp_path, "items", mmap=mmap)
    for name in ("indptr", "indices", "scores", "common"):
        saved, got = getattr(table, name), getattr(loaded, name)
        assert got.dtype == saved.dtype
        np.testing.assert_array_equal(got, saved)
    assert loaded.indices.flags.writeable is not mmap


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    TABLE.save(tmp_path, "items")
    file = tmp_path / "items.scores.npy"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-3])
    else:
        file.unlink()
    with pytest.raises(ArtifactError, match=r"items\.scores\.npy is missing or damaged: run stage swing"):
        NeighbourTable.load(tmp_path, "items")
