"""Sound files are read, all others are refused in one sentence, and what we write is the same bytes every time."""

import json
import resource
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.torch import load_file, save

from loractl.errors import DiskFullError, FormatError, InputError
from loractl.formats.safefile import DTYPES, data_hash, read_header, read_tensors, replacing, write_tensors

HOSTILE = sorted(Path(__file__).parent.with_name("data").joinpath("hostile_safetensors").glob("*.safetensors"))
TENSORS = {
    "b": torch.arange(6, dtype=torch.float16).view(2, 3),
    "a": torch.tensor([True, False, True]),
    "c": torch.tensor(0.5),
    "ü": torch.empty(0, 4, dtype=torch.bfloat16),
}


def accepts(path: Path) -> bool:
    """Whether we take the file, which we must not unless the library does."""
    try:
        read_header(path)
    except FormatError as error:
        assert str(path) in str(error)
        return False
    deserialize(path.read_bytes())
    return True


def with_header(text: str | bytes, data: bytes = b"") -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_files_are_judged_as_by_the_library(path: Path) -> None:
    try:
        deserialize(path.read_bytes())
        sound = True
    except SafetensorError:
        sound = False
    assert accepts(path) == sound


def test_the_hostile_folder_is_all_there() -> None:
    assert len(HOSTILE) == 9


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ('{"a":1,"a":2}', b"", "same key twice"),
        (json.dumps({"a": entry() | {"dtype": "F31"}}), b"xx", "dtype F31"),
        (json.dumps({"a": entry(shape=(-1,))}), b"xx", "negative"),
        ('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}', b"", "negative"),
        (json.dumps({"a": entry(shape=(2.0,))}), b"xx", "whole numbers"),
        (json.dumps({"a": entry(shape=(True, 2))}), b"xx", "whole numbers"),
        (json.dumps({"a": entry(shape=(3,))}), b"xx", "does not fit its offsets"),
        (json.dumps({"a": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}), b"", "larger than any memory"),
        (json.dumps({"a": entry(), "b": entry(offsets=(1, 3))}), b"xxx", "overlaps"),
        (json.dumps({"a": entry(), "b": entry(offsets=(3, 5))}), b"xxxxx", "hole"),
        (json.dumps({"a": entry()}), b"xxx", "take 2 bytes and the file has 3"),
        (json.dumps({"a": entry()}), b"x", "take 2 bytes and the file has 1"),
        (json.dumps({"a": entry() | {"more": 1}}), b"xx", "not a dtype"),
        (json.dumps({"__metadata__": {"a": 1}}), b"", "not strings"),
        ("[]", b"", "not a JSON object"),
        ("[" * 100_000, b"", "not JSON"),
        ('{"\\ud800":1}', b"", "not JSON"),
        (b'{"\xff":1}', b"", "not JSON"),
    ],
)
def test_a_broken_header_is_refused_for_its_own_reason(tmp_path: Path, header: str, data: bytes, words: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(with_header(header, data))
    with pytest.raises(FormatError, match=words):
        read_header(path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"PK\x03\x04" + bytes(40), "pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\xff" * 40, "no length"),
        ((10**6).to_bytes(8, "little") + b"{}", "longer than the file"),
    ],
)
def test_other_files_are_recognized(tmp_path: Path, start: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(start)
    with pytest.raises(FormatError, match=words):
        read_header(path)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.safetensors cannot be read"):
        read_header(tmp_path / "nothing.safetensors")


@settings(deadline=None)  # files take their time
@given(data=st.binary(max_size=200))
def test_random_bytes_never_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    accepts(path)


texts = st.text('aé"\\\n\ud800', max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(-1, 20) | json_values
claims = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*DTYPES, "F4", "X"]), "shape": st.lists(numbers, max_size=3)},
    optional={"data_offsets": st.lists(numbers, min_size=2, max_size=2) | json_values, "extra": json_values},
)
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "é"]), claims | json_values, max_size=3)


@settings(deadline=None)  # files take their time
@given(header=headers, size=st.integers(0, 40))
def test_wild_headers_never_break_the_reader(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(with_header(json.dumps(header, ensure_ascii=False).encode(errors="surrogatepass"), bytes(size)))
    accepts(path)


@settings(deadline=None)  # files take their time
@given(data=st.data())
def test_a_sound_file_with_a_few_bytes_changed_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sound = bytearray(save(TENSORS, {"key": "text"}))
    characters = st.integers(0, 255) | st.sampled_from((string.digits + '"{}[],:-.e\\').encode())
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(characters)
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(bytes(sound[: data.draw(st.integers(len(sound) - 3, len(sound)))]))
    accepts(path)


@settings(deadline=None)  # files take their time
@given(
    shapes=st.dictionaries(
        st.text('ab._é"\\\n🙂', min_size=1),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=3)),
        max_size=5,
    )
)
def test_the_library_reads_what_we_write(tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}
    write_tensors(path, tensors, {}, overwrite=True)
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in load_file(path).items()} == shapes
    assert all(bool((tensor.float() == 1).all()) for tensor in load_file(path).values())
    assert read_header(path).entries.keys() == shapes.keys()


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"z": "1", "a": "zwei"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"a": "zwei", "z": "1"}
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS
    )
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata


def test_a_tensor_that_is_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    view = torch.arange(12.0).view(3, 4).T[1:3]
    write_tensors(tmp_path / "a.safetensors", {"view": view}, {})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["view"], view)


def test_equal_contents_give_equal_bytes_in_any_order_and_data_are_aligned(tmp_path: Path) -> None:
    metadata = {f"key {number}": "text" for number in range(20)}
    write_tensors(tmp_path / "a", TENSORS, metadata)
    write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    header = read_header(tmp_path / "a")
    assert all((header.offset + entry.begin) % DTYPES[entry.dtype].itemsize == 0 for entry in header.entries.values())


def test_data_hash_is_of_the_data_alone(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", TENSORS, {})
    write_tensors(tmp_path / "b", TENSORS, {"key": "text"})
    write_tensors(tmp_path / "c", {**TENSORS, "c": torch.tensor(0.25)}, {})
    assert data_hash(tmp_path / "a") == data_hash(tmp_path / "b") != data_hash(tmp_path / "c")


def test_the_data_hash_of_a_known_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"abc": torch.tensor(list(b"abc"), dtype=torch.uint8)}, {})
    # FIPS 180-2, appendix B.1
    assert data_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_nothing_is_overwritten_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        write_tensors(path, TENSORS, {})
    assert path.read_text() == "precious"
    write_tensors(path, TENSORS, {}, overwrite=True)
    assert accepts(path)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DiskFullError, match="make room"):
            write_tensors(path, {"large": torch.zeros(2**16)}, {}, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_tensors(tmp_path / "nowhere" / "a.safetensors", TENSORS, {})
