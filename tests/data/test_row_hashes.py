"""Hashes of rows: equal for equal bytes, by a slow second implementation."""

import hashlib

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from keras_osgd.data.row_hashes import row_hashes
from keras_osgd.data.uneven_columns import uneven
from tests.helpers.small import X, Y

WORD = 2**64


def number(i):
    """Returns the i-th number of SplitMix64 from seed 0, by Python's integers."""
    z = (i + 1) * 0x9E3779B97F4A7C15 % WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % WORD
    return z ^ z >> 31


def hash_of(contents, first=0):
    """Returns the multilinear hash of bytes."""
    contents += bytes(-len(contents) % 4)
    words = [contents[i : i + 4] for i in range(0, len(contents), 4)]
    values = [int.from_bytes(word, "little") for word in words]
    return sum(number(first + i) * value for i, value in enumerate(values)) % WORD


def test_numbers_are_those_of_splitmix64():
    assert [number(i) for i in range(2)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


LONG = np.random.default_rng(0).integers(0, 256, (3, 2**20 + 7), np.uint8)


@pytest.mark.parametrize(
    "leaf",
    [
        X,
        np.asfortranarray(X)[::2],
        Y.astype("uint8"),
        X.astype("float16")[:, :3],
        LONG[:, ::2][:, :11],
        np.array(["ab", "c"]),
        np.zeros([4, 0], "float32"),
        np.zeros([0, 3], "float32"),
    ],
    ids=lambda leaf: f"{leaf.dtype}{leaf.shape}",
)
def test_dense_rows_have_the_multilinear_hash_of_their_bytes(leaf):
    expected = [hash_of(row.tobytes()) for row in leaf]
    np.testing.assert_array_equal(row_hashes([leaf]), np.array(expected, np.uint64))


def test_parts_of_the_rows_leave_no_seam():
    rows = np.arange(3 * 2**18, dtype="int32")  # 3 MB
    by_factor = rows.astype("uint64") * np.uint64(number(0))
    np.testing.assert_array_equal(row_hashes([rows]), by_factor)
    wide = row_hashes([LONG])  # a part for each row
    np.testing.assert_array_equal(wide[1:], row_hashes([LONG[1:]]))
    assert len(set(wide.tolist())) == 3


def test_texts_have_the_hash_of_what_they_say():
    texts = np.array([["a", "b"], ["c", "d"]], object)
    digests = [hashlib.blake2b(repr(t).encode(), digest_size=8) for t in texts.tolist()]
    values = [int.from_bytes(digest.digest(), "little") for digest in digests]
    expected = np.array([v * number(0) % WORD for v in values], np.uint64)
    np.testing.assert_array_equal(row_hashes([texts]), expected)


RAGGED = [[[1], [2, 3]], [[1, 2], [3]], [], [[]], [[], []], [[1], [2, 3]], [[0]]]


def test_ragged_rows_differ_wherever_their_entries_or_lengths_do():
    hashes = row_hashes([uneven(tf.ragged.constant(RAGGED))]).tolist()
    assert hashes[0] == hashes[5]
    assert len(set(hashes)) == len(RAGGED) - 1
    # By hand: axes are sums by place, and their lengths count.
    family = 2**40

    def axis(parts, level):
        places = [number(level * family + i) for i in range(len(parts) + 1)]
        total = sum(h * p for h, p in zip(parts, places[1:], strict=True))
        return (total + len(parts) * places[0]) % WORD

    for row, found in zip(RAGGED, hashes, strict=True):
        inner = [[hash_of(np.int32(v).tobytes()) for v in part] for part in row]
        assert found == axis([axis(part, 1) for part in inner], 2)


def test_sparse_rows_differ_by_value_and_place():
    dense = np.array([[0, 5, 0], [5, 0, 0], [0, 6, 0], [0, 5, 0], [0, 0, 0]])
    hashes = row_hashes([uneven(scipy.sparse.csr_array(dense))])
    assert hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 4


def test_rows_that_differ_in_any_one_bit_have_other_upper_halves():
    base = [X[:1], Y[:1], np.array([[b"word"]], object)]
    changed = [base]
    for leaf, bits in ((0, 128), (1, 64)):
        for bit in range(bits):
            other = [part.copy() for part in base]
            other[leaf].view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
            changed.append(other)
    changed.append([*base[:2], np.array([[b"ward"]], object)])
    changed.append([-base[0], *base[1:]])
    hashes = [int(row_hashes(leaves)[0]) >> 32 for leaves in changed]
    assert len(set(hashes)) == len(changed) == 195
