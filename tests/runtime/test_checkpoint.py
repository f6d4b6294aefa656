"""Checkpoint folders: what is written comes back, and every kind of damage is refused by name."""

import json
import pickle
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from videoar.runtime import checkpoint_write
from videoar.runtime.checkpoint import (
    read_config,
    read_model_index,
    read_weights,
    write_component,
    write_model_index,
)
from videoar.runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerConfig:
    width: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    layers: int
    dropout: float = 0.0
    name: str = "small"
    tied: bool = False
    window: int | None = None
    scales: tuple[tuple[int, int], ...] = ((1, 1),)
    split: tuple[float, float] = (0.5, 0.5)
    mode: Literal["area", "bilinear"] = "area"
    inner: InnerConfig = InnerConfig()

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers: at least 1 is needed, got {self.layers}")


CONFIG = ExampleConfig(layers=2, window=3, scales=((1, 2), (3, 4)), inner=InnerConfig(width=7))


def example_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (7, 4), "block.0.bias": (5,), "block.0.weight": (5, 3), "scale": ()}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def shapes_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items()}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    write_component(tmp_path / "part", "part", CONFIG, example_state())
    return tmp_path / "part"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_component(tmp_path / "part", "part", CONFIG, example_state(), max_shard_bytes=100)
    assert len(list((tmp_path / "part").glob("model-*"))) == 3
    return tmp_path / "part"


def refuses(folder: Path, *words: str, **options) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder, shapes_of(example_state()), **options)
    for word in (folder.name, *words):
        assert word in str(caught.value)


def edit_json(path: Path, **changes) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestRoundTrip:
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        shapes=st.dictionaries(
            st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
            st.lists(st.integers(0, 4), max_size=3),
            max_size=6,
        ),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        limit=st.integers(1, 400),
    )
    def test_any_state_comes_back_bit_for_bit(self, tmp_path_factory, shapes, dtype, limit):
        folder = tmp_path_factory.mktemp("any") / "part"
        state = {key: torch.randn(shape).to(dtype) for key, shape in shapes.items()}
        write_component(folder, "part", CONFIG, state, max_shard_bytes=limit)
        loaded = read_weights(folder, shapes_of(state))
        assert list(loaded) == list(state)
        for key, tensor in state.items():
            assert loaded[key].dtype == dtype
            assert torch.equal(loaded[key], tensor), key

    def test_casts_on_writing_and_on_reading(self, tmp_path):
        state = example_state()
        write_component(tmp_path / "part", "part", CONFIG, state, dtype=torch.bfloat16)
        stored = read_weights(tmp_path / "part", shapes_of(state))
        loaded = read_weights(tmp_path / "part", shapes_of(state), dtype=torch.float32)
        for key, tensor in state.items():
            assert torch.equal(stored[key], tensor.bfloat16())
            assert loaded[key].dtype == torch.float32
            assert torch.equal(loaded[key], tensor.bfloat16().float())

    def test_views_and_shared_tensors(self, tmp_path):
        base = torch.randn(6, 4)
        state = {"a": base.T, "b": base, "c": base[::2], "d": base[:1].expand(3, 4)}
        write_component(tmp_path / "part", "part", CONFIG, state)
        loaded = read_weights(tmp_path / "part", shapes_of(state))
        assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())

    @pytest.mark.parametrize("limit", [100, 1 << 30])
    def test_same_input_same_bytes(self, tmp_path, limit):
        state = example_state()
        reordered = dict(reversed(state.items()))
        write_component(tmp_path / "a", "part", CONFIG, state, max_shard_bytes=limit)
        write_component(tmp_path / "b", "part", CONFIG, reordered, max_shard_bytes=limit)
        assert files_of(tmp_path / "a") == files_of(tmp_path / "b")

    def test_loaded_tensors_do_not_depend_on_the_file(self, single):
        loaded = read_weights(single, shapes_of(example_state()))
        path = single / "model.safetensors"
        path.write_bytes(b"\0" * path.stat().st_size)
        assert all(torch.equal(loaded[key], tensor) for key, tensor in example_state().items())

    def test_header_length_that_looks_like_a_pickle(self, tmp_path):
        """A header of 640 bytes starts with the two bytes of a pickle."""
        write_component(tmp_path / "part", "part", CONFIG, {"x": torch.ones(2)})
        path = tmp_path / "part" / "model.safetensors"
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length].ljust(640)
        path.write_bytes((640).to_bytes(8, "little") + header + content[8 + length :])
        assert path.read_bytes().startswith(b"\x80\x02")
        assert torch.equal(read_weights(tmp_path / "part", {"x": (2,)})["x"], torch.ones(2))


class TestWriting:
    def test_replaces_a_component_completely(self, sharded):
        write_component(sharded, "part", CONFIG, {"x": torch.ones(2)})
        assert sorted(files_of(sharded)) == ["config.json", "model.safetensors"]
        assert [path.name for path in sharded.parent.iterdir()] == ["part"]

    def test_leaves_other_folders_alone(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(CheckpointError, match=r"holds thesis\.txt"):
            write_component(tmp_path, "part", CONFIG, example_state())
        assert (tmp_path / "thesis.txt").read_text() == "precious"

    @pytest.mark.parametrize("step", ["_write_shards", "_exchange"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
    def test_an_interrupted_write_changes_nothing(self, single, monkeypatch, step, error):
        before = files_of(single)

        def fail(*_):
            raise error

        monkeypatch.setattr(checkpoint_write, step, fail)
        with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt):
            write_component(single, "part", CONFIG, {"x": torch.ones(2)})
        assert files_of(single) == before
        assert [path.name for path in single.parent.iterdir()] == ["part"]

    def test_a_failed_rename_puts_the_old_component_back(self, single, monkeypatch):
        before = files_of(single)
        rename = checkpoint_write.os.replace

        def fail_on_new(source, target):
            if str(source).endswith(".tmp"):
                raise OSError("no")
            rename(source, target)

        monkeypatch.setattr(checkpoint_write.os, "replace", fail_on_new)
        with pytest.raises(CheckpointError, match="part: could not be written"):
            write_component(single, "part", CONFIG, {"x": torch.ones(2)})
        assert files_of(single) == before

    @pytest.mark.parametrize(
        ("tensor", "dtype", "words"),
        [
            (torch.ones(2, dtype=torch.float64), None, "x: cannot be stored as torch.float64"),
            (torch.ones(2, dtype=torch.int64), None, "x: cannot be stored as torch.int64"),
            (torch.ones(2, dtype=torch.int64), torch.float32, "x: cannot be stored"),
            (torch.ones(2), torch.float64, "dtype: .* got torch.float64"),
            (torch.tensor([1.0, torch.nan]), None, "x: has NaN or Inf"),
            (torch.tensor([1e6]), torch.float16, "x: has NaN or Inf as torch.float16"),
        ],
    )
    def test_refuses_what_could_not_be_read(self, tmp_path, tensor, dtype, words):
        with pytest.raises(ValueError, match=words):
            write_component(tmp_path / "part", "part", CONFIG, {"x": tensor}, dtype=dtype)
        assert not list(tmp_path.iterdir())

    def test_refuses_odd_names_and_limits(self, tmp_path):
        with pytest.raises(ValueError, match=r"component: .* got 'A-b'"):
            write_component(tmp_path / "part", "A-b", CONFIG, {})
        with pytest.raises(ValueError, match="max_shard_bytes"):
            write_component(tmp_path / "part", "part", CONFIG, {}, max_shard_bytes=0)


class TestFiles:
    def test_missing_folder(self, tmp_path):
        refuses(tmp_path / "nowhere", "does not exist")

    def test_file_instead_of_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        refuses(tmp_path / "file", "is not a folder")

    def test_missing_weights(self, single):
        (single / "model.safetensors").unlink()
        refuses(single, "model.safetensors: does not exist")

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"])
    def test_pickle_instead_of_safetensors(self, single, name):
        (single / "model.safetensors").unlink()
        torch.save(example_state(), single / name)
        refuses(single, f"{name}: pickles are not read")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_renamed_torch_file(self, single, zipped):
        path = single / "model.safetensors"
        torch.save(example_state(), path, _use_new_zipfile_serialization=zipped)
        refuses(single, "model.safetensors: is a pickle, pickles are not read")

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_renamed_pickle(self, single, protocol):
        (single / "model.safetensors").write_bytes(pickle.dumps({"x": [1.0] * 9}, protocol))
        refuses(single, "is a pickle, pickles are not read")

    def test_truncated_at_every_length(self, single):
        path = single / "model.safetensors"
        content = path.read_bytes()
        for length in [*range(0, len(content), 23), 7, 8, 9, len(content) - 1]:
            path.write_bytes(content[:length])
            refuses(single, "model.safetensors: truncated", f"{length} bytes")

    def test_trailing_bytes(self, single):
        with (single / "model.safetensors").open("ab") as file:
            file.write(b"\0" * 8)
        refuses(single, "model.safetensors: damaged")

    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(garbage=st.binary(max_size=200), framed=st.booleans())
    def test_random_bytes(self, tmp_path_factory, garbage, framed):
        folder = tmp_path_factory.mktemp("garbage")
        prefix = len(garbage).to_bytes(8, "little") if framed else b""
        (folder / "model.safetensors").write_bytes(prefix + garbage)
        refuses(folder, "model.safetensors")

    @pytest.mark.parametrize(
        "header",
        [
            b"[]",
            b'{"x": 1}',
            b'{"x": {"data_offsets": [0]}}',
            b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, "8"]}}',
            b'{"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',
            b'{"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
            b'{"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}',
            b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
            b"[" * 10_000,
        ],
    )
    def test_broken_header(self, single, header):
        content = len(header).to_bytes(8, "little") + header + b"\0" * 8
        (single / "model.safetensors").write_bytes(content)
        refuses(single, "model.safetensors")


class TestShards:
    def test_missing_shard(self, sharded):
        (sharded / "model-00002-of-00003.safetensors").unlink()
        refuses(sharded, "model-00002-of-00003.safetensors: does not exist, but the index")

    def test_renamed_shard(self, sharded):
        shard = sharded / "model-00002-of-00003.safetensors"
        shard.rename(sharded / "model-00009-of-00003.safetensors")
        refuses(sharded, "model-00002-of-00003.safetensors: does not exist")

    def test_extra_shard(self, sharded):
        save_file({"y": torch.ones(1)}, sharded / "model-00004-of-00003.safetensors")
        refuses(sharded, "model-00004-of-00003.safetensors: is not listed")

    def test_single_file_beside_shards(self, sharded):
        save_file(example_state(), sharded / "model.safetensors")
        refuses(sharded, "model.safetensors: is not listed")

    def test_shards_without_index(self, sharded):
        (sharded / "model.safetensors.index.json").unlink()
        refuses(sharded, "model-00001-of-00003.safetensors: a shard that has no index")

    def test_shard_beside_a_single_file(self, single):
        save_file({"y": torch.ones(1)}, single / "model-00001-of-00002.safetensors")
        refuses(single, "model-00001-of-00002.safetensors: a shard that is beside")

    def test_swapped_shards(self, sharded):
        first, second = (sharded / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
        first.rename(sharded / "swap")
        second.rename(first)
        (sharded / "swap").rename(second)
        refuses(sharded, "model-00001-of-00003.safetensors", "missing keys that the index places")

    def test_key_that_the_index_does_not_know(self, sharded):
        index = sharded / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        shard = weight_map.pop("block.0.bias")
        edit_json(index, weight_map=weight_map)
        refuses(sharded, shard, "1 unexpected keys: block.0.bias")

    @pytest.mark.parametrize("name", ["../model.safetensors", "a\\b.safetensors", "x.bin", 3, None])
    def test_file_name_outside_the_folder(self, sharded, name):
        edit_json(sharded / "model.safetensors.index.json", weight_map={"scale": name})
        refuses(sharded, "index.json: scale: the name of a .safetensors is needed")

    @pytest.mark.parametrize("weight_map", [..., [], {}, "x"])
    def test_index_without_map(self, sharded, weight_map):
        edit_json(sharded / "model.safetensors.index.json", weight_map=weight_map)
        refuses(sharded, "index.json: weight_map")

    @pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"weight_map": {}, "weight_map": {}}'])
    def test_index_that_is_no_object(self, sharded, text):
        (sharded / "model.safetensors.index.json").write_text(text, encoding="latin-1")
        refuses(sharded, "model.safetensors.index.json")

    def test_truncated_shard(self, sharded):
        shard = sharded / "model-00003-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        refuses(sharded, "model-00003-of-00003.safetensors: truncated")


class TestTensors:
    def store(self, folder: Path, **changes) -> None:
        state = {k: v for k, v in (example_state() | changes).items() if v is not None}
        save_file(state, folder / "model.safetensors")

    def test_missing_key(self, single):
        self.store(single, scale=None)
        refuses(single, "1 missing keys of the model: scale")

    def test_unexpected_keys_are_counted(self, single):
        self.store(single, **{f"more.{n}": torch.ones(1) for n in range(8)})
        refuses(single, "8 unexpected keys: more.0, more.1, more.2, more.3, more.4 and 3 more")

    def test_shape(self, single):
        self.store(single, **{"embed.weight": torch.ones(4, 7)})
        refuses(single, "model.safetensors: embed.weight: shape [7, 4] is needed, got [4, 7]")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.bool])
    def test_dtype(self, single, dtype):
        self.store(single, scale=torch.ones((), dtype=dtype))
        refuses(single, "model.safetensors: scale: F32, F16 or BF16 is needed")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_values_that_are_not_finite(self, single, value, dtype):
        bias = torch.zeros(5, dtype=dtype)
        bias[3] = value
        self.store(single, **{"block.0.bias": bias})
        refuses(single, "model.safetensors: block.0.bias: has NaN or Inf values")

    def test_overflow_in_the_wanted_dtype(self, single):
        self.store(single, scale=torch.tensor(1e6))
        refuses(single, "scale: has values beyond the range", dtype=torch.float16)
        assert read_weights(single, shapes_of(example_state()))["scale"] == 1e6

    def test_dtype_argument(self, single):
        with pytest.raises(ValueError, match=r"dtype: .* got torch\.int8"):
            read_weights(single, {}, dtype=torch.int8)


class TestConfig:
    def test_round_trip(self, single):
        assert read_config(single, ExampleConfig) == CONFIG
        assert read_config(single, ExampleConfig, component="part") == CONFIG

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        layers=st.integers(1, 2**40),
        dropout=st.floats(allow_nan=False, allow_infinity=False),
        name=st.text(st.characters(exclude_categories=["Cs"])),
        window=st.none() | st.integers(),
        scales=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    )
    def test_any_values_round_trip(self, tmp_path_factory, **values):
        folder = tmp_path_factory.mktemp("config") / "part"
        write_component(folder, "part", replace(CONFIG, **values), {})
        assert read_config(folder, ExampleConfig) == replace(CONFIG, **values)

    def test_defaults_fill_in(self, single):
        (single / "config.json").write_text('{"format": "videoar-part-1", "layers": 3}')
        assert read_config(single, ExampleConfig) == ExampleConfig(layers=3)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"format": ...}, "format: .* got None"),
            ({"format": "videoar-part-2"}, "format: .* got 'videoar-part-2'"),
            ({"format": 1}, "format: .* got 1"),
            ({"colour": "red"}, "colour: unknown field"),
            ({"layers": ...}, "layers: missing field"),
            ({"layers": 2.0}, "layers: int is needed, got float 2.0"),
            ({"layers": True}, "layers: int is needed, got bool True"),
            ({"layers": "2"}, "layers: int is needed, got str '2'"),
            ({"layers": None}, "layers: int is needed, got null"),
            ({"layers": 0}, "layers: at least 1 is needed, got 0"),
            ({"dropout": False}, "dropout: float is needed"),
            ({"dropout": 10**400}, "dropout: float is needed"),
            ({"name": ["x"]}, "name: str is needed, got a list"),
            ({"tied": 1}, "tied: bool is needed"),
            ({"window": "all"}, "window: int or null is needed"),
            ({"scales": 3}, "scales: a list is needed"),
            ({"scales": [[1, 2], [3]]}, r"scales\[1\]: 2 values are needed, got 1"),
            ({"scales": [[1, 2], [3, "4"]]}, r"scales\[1\]\[1\]: int is needed"),
            ({"split": [0.1, 0.2, 0.3]}, "split: 2 values are needed, got 3"),
            ({"mode": "cubic"}, "mode: 'area' or 'bilinear' is needed"),
            ({"inner": {"depth": 1}}, r"inner\.depth: unknown field"),
            ({"inner": {"width": "1"}}, r"inner\.width: int is needed"),
            ({"inner": 3}, "inner: InnerConfig is needed"),
        ],
    )
    def test_refuses(self, single, changes, words):
        edit_json(single / "config.json", **changes)
        with pytest.raises(CheckpointError, match=r"part/config\.json: " + words):
            read_config(single, ExampleConfig)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "no readable JSON"),
            ("{", "no readable JSON"),
            ("[1]", "a JSON object is needed, got a list"),
            ('{"dropout": NaN}', "NaN is no JSON number"),
            ('{"layers": 1, "layers": 2}', "repeated key 'layers'"),
            ('{"format": "videoar-part-1", "layers": 1, "dropout": 1e999}', "dropout: float"),
            ("[" * 100_000, "no readable JSON"),
        ],
    )
    def test_refuses_text(self, single, text, words):
        (single / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"part/config\.json: .*" + words):
            read_config(single, ExampleConfig)

    def test_other_component(self, single):
        with pytest.raises(CheckpointError, match='format: "videoar-tokenizer-1" is needed'):
            read_config(single, ExampleConfig, component="tokenizer")

    def test_missing_file_and_folder(self, single):
        (single / "config.json").unlink()
        with pytest.raises(CheckpointError, match=r"config\.json: does not exist"):
            read_config(single, ExampleConfig)
        with pytest.raises(CheckpointError, match="nowhere: does not exist"):
            read_config(single / "nowhere", ExampleConfig)


class TestModelIndex:
    def test_round_trip(self, tmp_path):
        index = {"components": {"transformer": {"layers": [1, 2]}}, "note": "text"}
        write_model_index(tmp_path / "model", index)
        assert read_model_index(tmp_path / "model") == {"format": "videoar-1", **index}
        assert [path.name for path in (tmp_path / "model").iterdir()] == ["model_index.json"]

    def test_missing_folder_file_and_wrong_kind(self, tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'no'}: does not exist")):
            read_model_index(tmp_path / "no")
        with pytest.raises(CheckpointError, match=r"model_index\.json: does not exist"):
            read_model_index(tmp_path)
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"model_index\.json: is not a folder"):
            read_model_index(tmp_path / "model_index.json")
        with pytest.raises(CheckpointError, match=r"model_index\.json: format: "):
            read_model_index(tmp_path)
        (tmp_path / "model_index.json").write_text('{"format": "videoar-1", "components": []}')
        with pytest.raises(CheckpointError, match=r"model_index\.json: components: "):
            read_model_index(tmp_path)

    @pytest.mark.parametrize("index", [{}, {"components": []}, {"components": {}, "format": "2"}])
    def test_refuses_to_write(self, tmp_path, index):
        with pytest.raises(ValueError, match="index: "):
            write_model_index(tmp_path / "model", index)
        assert not list(tmp_path.iterdir())

    def test_unwritable(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="could not be written"):
            write_model_index(tmp_path / "file" / "model", {"components": {}})


def test_weights_are_as_readable_as_the_config(tmp_path: Path) -> None:
    """Safetensors itself writes files that only their owner can read."""
    folder = tmp_path / "part"
    write_component(folder, "part", CONFIG, example_state())
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1
