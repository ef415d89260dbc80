"""The codec: what goes in comes out as plain data, and no bytes can do more than fail."""

import collections
import dataclasses
import enum
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autograder.inside import codec
from autograder.inside.codec import DTYPES, CodecError, Opaque, decode, encode


def round_trip(value):
    return decode(encode(value))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def same(a, b):
    """Equal in exact type and value; NaN equals NaN, 0.0 differs from -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return a == b


tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(
        0, 2, shape, generator=torch.Generator().manual_seed(seed)
    ).to(dtype),
    st.sampled_from([d for n, d in DTYPES.items() if n != "complex32"]),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 9),
)
keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
lone_surrogates = st.text(st.characters())
scalars = st.none() | st.booleans() | st.integers() | st.floats() | lone_surrogates | st.binary()
values = st.recursive(
    scalars | tensors,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(values)
@settings(deadline=None)
def test_plain_data_survives_exactly(value):
    assert same(round_trip(value), value)


def test_strings_survive_even_where_they_are_no_unicode():
    for text in ("\ud800", "\ud83d\ude00", "😀", "\0", '"\\'):
        assert round_trip(text) == text


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_dtype_and_layout_survives_bit_by_bit(dtype):
    real = torch.complex64 if dtype == torch.complex32 else dtype
    base = torch.arange(24).reshape(2, 3, 4).to(real).to(dtype)
    for tensor in (
        base,
        base.transpose(0, 2),
        base[:, ::2],
        base[0, 0, 0],
        base[:0],
        base[:, :1].expand(2, 5, 4),
        base.permute(2, 0, 1)[1:, :, 1:],
    ):
        there = round_trip(tensor)
        assert same(there, tensor)
        if tensor.numel() and not tensor.is_contiguous():
            assert there.stride() == tensor.stride(), "a case's layout is part of the case"


def test_what_is_like_plain_data_arrives_as_plain_data():
    Point = collections.namedtuple("Point", "x y")

    @dataclasses.dataclass
    class Pair:
        left: int
        right: torch.Tensor

    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Colour(enum.IntEnum):
        RED = 3

    for value, plain in [
        (Point(1, "a"), (1, "a")),
        (Pair(1, torch.ones(2)), (1, torch.ones(2))),
        (Liar(5), 5),
        (Colour.RED, 3),
        (collections.OrderedDict(a=1), {"a": 1}),
        (torch.nn.Parameter(torch.ones(2)), torch.ones(2)),
        (torch.ones(2, requires_grad=True) * 2, torch.full((2,), 2.0)),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j])),
        (torch.Size([2, 3]), (2, 3)),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(6).reshape(2, 3)[:, ::-1], torch.tensor([[2, 1, 0], [5, 4, 3]])),
        (np.float64("nan"), float("nan")),
        (bytearray(b"x"), b"x"),
    ]:
        assert same(round_trip(value), plain), value


def test_a_tensor_subclass_that_lies_is_only_its_data():
    class Liar(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.equal, torch.allclose, torch.Tensor.__eq__):
                return True
            return super().__torch_function__(function, types, args, kwargs or {})

    assert same(round_trip(torch.ones(3).as_subclass(Liar)), torch.ones(3))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({1}, "set"),
        (len, "builtin_function_or_method"),
        (1j, "complex"),
        (torch.float32, "dtype"),
        (torch.eye(2).to_sparse(), "sparse_coo tensor"),
        (torch.empty(2, device="meta"), "meta tensor"),
        (np.array(["a"]), "<U1 ndarray"),
        (2**5000, "very large int"),
        (range(3), "range"),
    ],
)
def test_everything_else_arrives_as_the_name_of_its_type(value, name):
    assert round_trip(value) == Opaque(name)
    assert round_trip([Opaque(name)]) == [Opaque(name)]


def test_what_is_too_large_is_refused_before_it_is_copied():
    endless = []
    endless.append(endless)
    for value, why in [
        (torch.zeros(1).expand(2**40), "larger than 32 MiB"),
        (b"x" * 2**26, "larger than 32 MiB"),
        ("x" * 2**23, "MiB of text"),
        ([0] * 600_000, "items"),
        (endless, "nested deeper"),
        ({i: 0 for i in range(20_000)}, "keys that are not strings"),
    ]:
        with pytest.raises(CodecError, match=why):
            encode(value)


def message(structure, payload=b""):
    text = json.dumps(structure).encode()
    return len(text).to_bytes(4, "big") + text + payload


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        message({"tensor": ["float32", [2], None]}, b"\0" * 4),  # lies about its length
        message({"tensor": ["float32", [2**40, 2**40], None]}),
        message({"tensor": ["float32", [0, 2**62, 2**62], None]}),
        message({"tensor": ["float32", [-1], None]}),
        message({"tensor": ["float32", [True], None]}, b"\0" * 4),
        message({"tensor": ["object", [1], None]}, b"\0" * 8),
        message({"tensor": ["float32", [2], [2**47]]}, b"\0" * 8),  # spans terabytes
        message({"tensor": ["float32", [2, 2], [1, 1]]}, b"\0" * 16),  # overlaps itself
        message({"tensor": ["float32", [1], [1, 1]]}, b"\0" * 4),
        message({"tensor": [["float32"], [1], None]}, b"\0" * 4),
        message({"bytes": -1}),
        message({"bytes": 1.5}, b"ab"),
        message({"dict": [[[], 0]]}),  # an unhashable key
        message({"dict": [[i, 0] for i in range(20_000)]}),
        message({"call": "os.system"}),
        message({"a": 1, "b": 2}),
        message({}),
        message(0, b"left over"),
        message([[]] * 600_000),
        message("x" * 5 * 2**20),
        b"\0\x00\xc3\x50" + b"[" * 50_000,
        b"\0\x00\x27\x10" + b"9" * 10_000,
    ],
)
def test_forged_messages_raise_codec_error(bad):
    with pytest.raises(CodecError):
        decode(bad)


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=300)
def test_random_bytes_raise_nothing_but_codec_error(data):
    for candidate in (data, len(data).to_bytes(4, "big") + data):
        try:
            decode(candidate)
        except CodecError:
            continue


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["tensor", "bytes", "dict", "tuple", "opaque", "x"]), inner, max_size=1
        )
        | st.tuples(
            st.sampled_from(list(DTYPES)),
            st.lists(st.integers(-1, 5), max_size=3),
            st.none() | st.lists(st.integers(0, 9), max_size=3),
        ).map(lambda t: {"tensor": list(t)})
    ),
    max_leaves=10,
)


@given(json_like, st.binary(max_size=64))
@settings(deadline=None, max_examples=500)
def test_random_structures_raise_nothing_but_codec_error(structure, payload):
    try:
        decode(message(structure, payload))
    except CodecError:
        return


@given(values, st.data())
@settings(deadline=None, max_examples=200)
def test_a_damaged_message_raises_nothing_but_codec_error(value, data):
    whole = bytearray(encode(value))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(whole))
    except CodecError:
        return


def test_a_bool_tensor_holds_only_true_and_false():
    forged = decode(message({"tensor": ["bool", [3], None]}, b"\x00\x02\xff"))
    assert bits(forged) == [0, 1, 1]


def test_many_strided_tensors_cannot_span_more_than_the_allowance():
    wide = {"tensor": ["float64", [2], [4000]]}
    with pytest.raises(CodecError, match="strides"):
        decode(message([wide] * 10_000, b"\0" * 160_000))
    assert codec.MAX_BYTES * 4 < 10_000 * 4000 * 8
