"""score: one sequential fused multiply-add in fp32, the same bits everywhere."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch

import bdkernels as bd
from bdkernels.backends import reference

SHAPES = [(1, 1, 1, 1), (3, 7, 1, 2), (5, 31, 5, 7), (2, 257, 17, 3), (9, 64, 129, 11)]


def rounded(x: Fraction) -> np.float32:
    """The float32 nearest to an exact fraction, ties to even, by comparison with its neighbours."""
    guess = np.float32(float(x))  # within one unit of the right answer
    near = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda v: (abs(Fraction(float(v)) - x), int(v.view(np.int32)) & 1))


def test_fma_rounds_once(rng):
    """Against exact rational arithmetic, on values made to be halfway between two floats in float64."""
    a = rng.standard_normal(4000).astype(np.float32)
    b = rng.standard_normal(4000).astype(np.float32)
    c = (rng.standard_normal(4000) * 10.0 ** rng.integers(-8, 9, 4000)).astype(np.float32)
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24: half a unit above a float32; a tiny c decides, and float64 would lose it.
    a[:3], b[:3], c[:3] = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32([0.0, 1e-30, -1e-30])
    a[3:6], b[3:6], c[3:6] = np.float32(1e-30), np.float32(1e-15), np.float32([1e-45, 0.0, -1e-45])  # subnormal results
    out = reference.fma(*(torch.from_numpy(x) for x in (a, b, c))).numpy()
    want = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(out, np.array(want))
    assert out[1] != out[2]


@pytest.mark.parametrize(("b", "n", "d", "c"), SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_against_float64(rng, backend, b, n, d, c, bias):
    f = oracle.factors(rng, b, n, d, bias)
    ids = torch.from_numpy(rng.integers(0, n, (b, c)))
    want = np.take_along_axis(oracle.scores(f), ids.numpy(), 1)
    np.testing.assert_array_equal(bd.score(f, ids, backend=backend).double().numpy(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("b", "n", "d", "c"), SHAPES)
def test_same_bits_in_every_backend(backend, dtype, b, n, d, c):
    """Random values, where the order and the fusing of the additions shows in the last bit."""
    f = bd.Factors(torch.randn(b, d).to(dtype), torch.randn(n, d).to(dtype), torch.randn(n).to(dtype))
    ids = torch.randint(0, n, (b, c))
    want = torch.gather(reference.score_block(f), 1, ids)
    assert torch.equal(bd.score(f, ids, backend=backend), want)
    assert bd.score(f, ids, backend=backend).dtype == torch.float32


def test_half_precision_specials(backend):
    """Every finite float16 is converted exactly, subnormals and signed zeros included."""
    bits = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = bits[bits.isfinite()]
    f = bd.Factors(torch.ones(1, 1, dtype=torch.float16), finite[:, None].clone())
    assert torch.equal(bd.score(f, torch.arange(len(finite))[None], backend=backend)[0], finite.float())


@pytest.mark.parametrize("d", [0, 1])
def test_sign_of_zero(backend, d):
    """A bias of -0.0 starts the chain, and stays where only -0.0 is added."""
    f = bd.Factors(torch.full((1, d), -1.0), torch.zeros(2, d), torch.tensor([-0.0, 0.0]))
    got = bd.score(f, torch.tensor([[0, 1]]), backend=backend)
    assert got.signbit().tolist() == [[True, False]]
    assert torch.equal(reference.score_block(f).signbit(), got.signbit())


def test_strided_rows_and_columns(backend):
    wide = torch.randn(40, 24)
    users = torch.randn(3, 8)
    ids = torch.randint(0, 20, (3, 5))
    for items in (wide[::2, :8], wide[:20, ::3], wide[:20, 8:16]):
        want = bd.score(bd.Factors(users, items.clone().contiguous()), ids, backend=backend)
        assert torch.equal(bd.score(bd.Factors(users, items), ids, backend=backend), want)


def test_empty(backend):
    strided = bd.Factors(
        torch.randn(2, 3), torch.randn(3, 0).T
    )  # of no items, and "contiguous" to torch whatever the strides
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert bd.score(strided, none, backend=backend).shape == bd.rank(strided, none, backend=backend).shape == (2, 0)
    assert bd.count_above(strided, torch.zeros(2, 1), none.new_zeros(2, 1), backend=backend).tolist() == [[0], [0]]
    f = bd.Factors(torch.randn(0, 4), torch.randn(6, 4))
    assert bd.score(f, torch.zeros(0, 3, dtype=torch.int64), backend=backend).shape == (0, 3)
    f = bd.Factors(torch.randn(2, 0), torch.randn(6, 0), torch.arange(6.0))
    assert bd.score(f, torch.tensor([[5], [2]]), backend=backend).tolist() == [[5.0], [2.0]]
