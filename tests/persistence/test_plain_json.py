"""Plain values as JSON and back: nothing is lost, nothing else is let through."""

import json
import math

import numpy as np
import pytest

from sk_avae.persistence.plain_json import DTYPES, Tagged, decode, encode

VALUES = [
    *(None, True, False, 0, -1, 2**70, "", "text", "\ud800", "\0\n"),
    *(0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, 1e22),
    *([], (), {}, [1, [2.5, ("a", None)]], ((1, 2), [3]), {"a": (1,), "b": {"c": [math.inf]}}),
    *({"array": 1}, {"tuple": [1]}, {"dict": {}}, {"own": ["module", "x"]}, {"": 0.5}),
    *(
        np.float32(0.1),
        np.float64(0.1),
        np.int64(-5),
        np.uint8(255),
        np.bool_(True),
        np.float16(0.1),
        np.float64("-inf"),
    ),
    Tagged("own", ("module", "MyVAE")),
    Tagged("AVAEEstimator", {"tol": 0.05}),
]
ARRAYS = [
    *(np.arange(6).astype(name).reshape(2, 3) for name in sorted(DTYPES)),
    *(np.array(2.5), np.zeros((0, 3)), np.arange(6.0).reshape(2, 3).T, np.arange(10)[::-2]),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.array([np.nan, np.inf, -0.0]),
]


def there_and_back(value):
    arrays = {}
    text = json.dumps(encode(value, arrays, "here"), allow_nan=False)
    return decode(json.loads(text), arrays, {"own", "AVAEEstimator"})


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_with_its_type(value):
    again = there_and_back(value)
    assert type(again) is type(value)
    assert repr(again) == repr(value)


@pytest.mark.parametrize("number", [math.nan, np.float32("nan")])
def test_nan_comes_back(number):
    assert math.isnan(there_and_back(number))
    assert type(there_and_back(number)) is type(number)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}-{array.shape}")
def test_an_array_comes_back(array):
    again = there_and_back({"a": [array]})["a"][0]
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()
    assert not np.shares_memory(again, array)


def test_the_other_byte_order_comes_back_in_this_one():
    assert there_and_back(np.array([1.5, 2], dtype=">f8")).tobytes() == np.array([1.5, 2]).tobytes()
    assert there_and_back(np.array(["a", "bc"], dtype=object)).tolist() == ["a", "bc"]


def test_arrays_are_named_by_their_place():
    arrays = {}
    encode({"module_": {"encoder.0.weight": np.zeros(2)}, "moments_": (np.zeros(1), np.ones(1))}, arrays)
    assert sorted(arrays) == ["module_.encoder.0.weight", "moments_.0", "moments_.1"]


class Number(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        *(object(), len, int, {1}, b"x", 1j, range(3), Number(3), {1: 2}, np.random.RandomState(0)),
        *(np.array([1j]), np.array([object()]), np.array(["2020"], dtype="M8"), np.complex64(1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"^state\.x\.1 is of type .*cannot be saved without pickle"):
        encode({"x": [0, value]}, {}, "state")


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": 1, "b": 2}', "{}", '{"os.system": ["true"]}', '{"float": "1.5"}', '{"float": [1]}', "1e999"),
        *('{"scalar": ["object", "00"]}', '{"scalar": ["float64", "00"]}', '{"scalar": ["float32", "zz"]}'),
        *('{"scalar": ["uint8", ""]}', '{"scalar": ["uint8", "0000"]}', '{"scalar": ["uint8"]}', '{"names": [1]}'),
        *('{"array": "missing"}', '{"array": []}', '{"tuple": 1}', '{"dict": []}', '{"names": 5}', '{"scalar": 5}'),
        '{"Pipeline": {"dict": {}}}',
    ],
)
def test_what_is_malformed_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        decode(json.loads(text), {}, {"own"})
