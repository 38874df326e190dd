"""Reading safetensors: only the asked part, every name once, and no file is believed before it is checked."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actorllm.errors import CheckpointError, TensorLeftOver, TensorMissing
from actorllm.weights.checkpoint import Checkpoint, num_bytes, tensor_files, tensor_shapes, tensor_sizes

TENSORS = {
    "a.weight": torch.arange(24.0).view(6, 4),
    "b.weight": torch.arange(8.0).view(2, 4) + 100,
    "norm.weight": torch.ones(4),
}


def save_single(directory: Path, tensors=None) -> Path:
    path = directory / "model.safetensors"
    save_file(TENSORS if tensors is None else tensors, path)
    return path


def save_sharded(directory: Path, weight_map=None) -> None:
    save_file({"a.weight": TENSORS["a.weight"]}, directory / "one.safetensors")
    save_file({name: TENSORS[name] for name in ("b.weight", "norm.weight")}, directory / "two.safetensors")
    names = {"a.weight": "one.safetensors", "b.weight": "two.safetensors", "norm.weight": "two.safetensors"}
    index = {"metadata": {}, "weight_map": names | (weight_map or {})}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def raw(path: Path, header: dict | bytes, data: bytes = b"") -> None:
    """A file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("save", [save_single, save_sharded])
def test_reads_parts_and_the_whole(tmp_path, save):
    save(tmp_path)
    a = TENSORS["a.weight"]
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.tensor("norm.weight", (4,)), TENSORS["norm.weight"])
        assert torch.equal(checkpoint.tensor("a.weight", (6, 4), rows=(2, 5)), a[2:5])
        for rows, cols in ((None, None), ((1, 4), None), (None, (1, 3)), ((5, 6), (0, 2))):
            weight = checkpoint.linear("a", (6, 4), rows=rows, cols=cols)
            part = a[slice(*(rows or (0, 6))), slice(*(cols or (0, 4)))]
            x = torch.randn(3, part.shape[1])
            torch.testing.assert_close(weight(x), x @ part.T)


def test_reads_only_its_part(tmp_path):
    save_single(tmp_path)
    read = []
    with Checkpoint.open(tmp_path, on_progress=read.append) as checkpoint:
        checkpoint.linear("a", (6, 4), rows=(0, 2), cols=(0, 3))
        checkpoint.tensor("norm.weight", (4,), rows=(1, 2))
    assert read == [2 * 3 * 4, 4]


def test_num_bytes_counts_each_file_once(tmp_path):
    save_sharded(tmp_path)
    assert num_bytes(tmp_path) == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_converts_to_the_models_dtype(tmp_path, stored):
    save_single(tmp_path, {"a.weight": TENSORS["a.weight"].to(stored)})
    with Checkpoint.open(tmp_path, dtype=torch.bfloat16) as checkpoint:
        assert checkpoint.tensor("a.weight", (6, 4)).dtype == torch.bfloat16


def test_codes_are_never_taken_for_values(tmp_path):
    save_single(tmp_path, {"a.weight": torch.ones(6, 4, dtype=torch.int8)})
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"a\.weight.*I8"):
        checkpoint.linear("a", (6, 4))


def test_a_missing_tensor_is_named(tmp_path):
    save_single(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(TensorMissing, match=r"c\.weight"):
        checkpoint.linear("c", (6, 4))


def test_a_wrong_shape_is_named_with_both(tmp_path):
    save_single(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"a\.weight.*\(6, 4\).*\(6, 5\)"):
        checkpoint.linear("a", (6, 5))


def test_left_over_tensors_are_named_unless_ignored(tmp_path):
    save_single(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.linear("a", (6, 4), rows=(0, 1))  # a part claims the name
        with pytest.raises(TensorLeftOver, match=r"2 tensors.*b\.weight, norm\.weight"):
            checkpoint.finish({})
        checkpoint.finish({"b.*": "not needed", "norm.weight": "nor this"})


def test_at_most_ten_names_are_shown(tmp_path):
    save_single(tmp_path, {f"t{index:02}": torch.ones(1) for index in range(25)})
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(TensorLeftOver, match=r"25 tensors.*t09 and 15 more"):
        checkpoint.finish({})


def test_a_tied_name_stands_for_its_twin(tmp_path):
    save_single(tmp_path, {"a.weight": TENSORS["a.weight"]})
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.tie({"head.weight": "a.weight"})
        assert checkpoint.has("head.weight")
        assert torch.equal(checkpoint.tensor("head.weight", (6, 4)), TENSORS["a.weight"])
        checkpoint.finish({})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(path.read_bytes()[:4]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
        lambda path: path.write_bytes(struct.pack("<Q", 10**9) + b"{}"),
        lambda path: raw(path, b"not json at all"),
        lambda path: raw(path, {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}),
        lambda path: raw(path, {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, bytes(8)),
        lambda path: raw(path, {"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, bytes(8)),
        lambda path: raw(path, {"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        lambda path: raw(
            path,
            {
                "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            bytes(12),
        ),
    ],
    ids=["cut", "cut-length", "empty", "2^63", "long", "no-json", "no-data", "size", "huge", "dtype", "overlap"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    damage(save_single(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd.safetensors", "sub/one.safetensors", "a.bin", 3, None])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path, target):
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    save_sharded(directory, {"a.weight": target})
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "one.safetensors"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    directory = tmp_path / "model"
    directory.mkdir()
    save_file(TENSORS, tmp_path / "outside.safetensors")
    if name == "one.safetensors":
        save_sharded(directory)
        (directory / name).unlink()
    (directory / name).symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="folder"):
        Checkpoint.open(directory)


@pytest.mark.parametrize("blob", ["models--acme--tiny/blobs/123", "blobs/12/123"], ids=["the model's own", "shared by models"])
def test_the_hubs_cache_may_link_into_its_blobs(tmp_path, blob):
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / blob).parent.mkdir(parents=True)
    save_file(TENSORS, tmp_path / blob)
    (snapshot / "model.safetensors").symlink_to(Path("../../..") / blob)
    assert set(tensor_files(snapshot)) == set(TENSORS)
    elsewhere = tmp_path / "models--acme--tiny" / "elsewhere"
    snapshot.rename(elsewhere)
    (elsewhere / "model.safetensors").unlink()
    (elsewhere / "model.safetensors").symlink_to(Path("../..") / blob)
    with pytest.raises(CheckpointError, match="folder"):
        tensor_files(elsewhere)


def test_an_index_and_its_files_must_agree(tmp_path):
    save_sharded(tmp_path, {"ghost.weight": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"ghost\.weight"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("copy_in", ["one", "two"])
def test_the_index_says_which_of_two_copies_counts(tmp_path, copy_in):
    """Whether the copy lies in the file that is read first or last."""
    save_sharded(tmp_path)
    name, held = ("b.weight", "a.weight") if copy_in == "one" else ("a.weight", "b.weight")
    rest = {"norm.weight": TENSORS["norm.weight"]} if copy_in == "two" else {}
    wrong = torch.zeros(7, 3)
    save_file({name: wrong, held: TENSORS[held], **rest}, tmp_path / f"{copy_in}.safetensors")
    assert tensor_shapes(tmp_path) == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    assert tensor_sizes(tmp_path) == {name: tensor.nbytes for name, tensor in TENSORS.items()}
    with Checkpoint.open(tmp_path) as checkpoint:
        for each, tensor in TENSORS.items():
            assert torch.equal(checkpoint.tensor(each, tuple(tensor.shape)), tensor)
        checkpoint.finish({})


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path):
    save_sharded(tmp_path, {"a.weight": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"a\.weight \(two\.safetensors\)"):
        Checkpoint.open(tmp_path)


def test_a_tensor_that_the_index_leaves_out_is_left_over(tmp_path):
    save_sharded(tmp_path)
    save_file({"a.weight": TENSORS["a.weight"], "old.extra": torch.ones(2)}, tmp_path / "one.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert not checkpoint.has("old.extra")
        checkpoint.rename({"old.": "new."})
        for name, tensor in TENSORS.items():
            checkpoint.tensor(name, tuple(tensor.shape))
        with pytest.raises(TensorLeftOver, match=r"index\.json does not name: new\.extra"):
            checkpoint.finish({})
        checkpoint.finish({"new.*": "a buffer"})
        with pytest.raises(TensorMissing, match="extra"):
            checkpoint.tensor("new.extra", (2,))


def test_a_missing_file_is_named(tmp_path):
    save_sharded(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": null}', "{" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        Checkpoint.open(tmp_path)


def test_pickles_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"\.bin.*safetensors"):
        Checkpoint.open(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        Checkpoint.open(tmp_path)


def test_renamed_prefixes(tmp_path):
    save_single(tmp_path, {"text.a.weight": TENSORS["a.weight"], "b.weight": TENSORS["b.weight"]})
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.rename({"text.": "model."})
        assert torch.equal(checkpoint.tensor("model.a.weight", (6, 4)), TENSORS["a.weight"])
        assert not checkpoint.has("text.a.weight")
        with pytest.raises(TensorLeftOver, match=r"1 tensors.*b\.weight"):
            checkpoint.finish({})


def test_two_tensors_of_one_name_are_refused(tmp_path):
    save_single(tmp_path, {"text.a": torch.ones(1), "a": torch.zeros(1)})
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"'text\.a'.*'a'"):
        checkpoint.rename({"text.": ""})


def test_linears_stored_the_other_way_round(tmp_path):
    save_single(tmp_path, {"fc.weight": TENSORS["a.weight"].T.contiguous(), "b.weight": TENSORS["b.weight"]})
    with Checkpoint.open(tmp_path) as checkpoint:
        checkpoint.transpose(["*fc"])
        part = checkpoint.linear("fc", (6, 4), rows=(1, 5), cols=(2, 4))
        torch.testing.assert_close(part(torch.eye(2)).T, TENSORS["a.weight"][1:5, 2:4])
        assert torch.equal(checkpoint.tensor("b.weight", (2, 4)), TENSORS["b.weight"])


def test_a_converted_tensor_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Its pages are given back after the copy; whoever reads them again, or a neighbour, finds the same."""
    values = {name: torch.randn(300, 500).bfloat16() for name in ("a.weight", "b.weight")}
    save_file(values, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        for name in ("a.weight", "b.weight", "a.weight"):
            assert torch.equal(checkpoint.tensor(name, (300, 500)), values[name].float())
        assert torch.equal(checkpoint.tensor("b.weight", (300, 500), rows=(7, 290)), values["b.weight"][7:290].float())
        assert torch.equal(checkpoint.tensor("a.weight", (300, 500)), values["a.weight"].float())
