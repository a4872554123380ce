import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qrun.adapters.cayley import FoldedLinear, cayley, fold_input, fold_output, gram, rotate, skew, tile

DIMS = (2, 3, 4, 8, 16, 32, 64)


def random_skews(dim, blocks, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(blocks, dim * (dim - 1) // 2, generator=generator) * 2 - 1) * scale


@settings(deadline=None, max_examples=60)
@given(dim=st.sampled_from(DIMS), scale=st.sampled_from([0.0, 1e-4, 0.03, 1.0, 10.0]), seed=st.integers(0, 10_000))
def test_blocks_are_special_orthogonal_for_any_parameters(dim, scale, seed):
    q = cayley(random_skews(dim, 5, scale, seed), dim)
    assert q.dtype == torch.float32
    error = (q.transpose(1, 2) @ q - torch.eye(dim)).abs().max()
    assert error <= (1e-6 if dim <= 16 else 1e-5)
    torch.testing.assert_close(torch.linalg.det(q.double()), torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(dim=st.sampled_from(DIMS), seed=st.integers(0, 10_000))
def test_negating_the_parameters_transposes_the_block(dim, seed):
    parameters = random_skews(dim, 3, 2.0, seed)
    torch.testing.assert_close(cayley(-parameters, dim), cayley(parameters, dim).transpose(1, 2), atol=1e-6, rtol=0)


def test_zero_parameters_give_the_identity_exactly():
    assert torch.equal(cayley(torch.zeros(7, 6), 4), torch.eye(4).expand(7, 4, 4))


def test_the_map_is_the_papers_formula():
    parameters = random_skews(4, 2, 1.0, 0).double()
    k, identity = skew(parameters, 4), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(
        cayley(parameters, 4), (identity - k / 2) @ torch.linalg.inv(identity + k / 2), atol=1e-12, rtol=0
    )


def test_two_dimensional_block_rotates_by_twice_the_arctangent_of_half_its_parameter():
    angle = 2 * torch.atan(torch.tensor(0.7) / 2)
    expected = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    torch.testing.assert_close(cayley(torch.tensor([[0.7]]), 2)[0], expected)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("blocks", [1, 6, 7])
def test_rotating_slices_equals_the_dense_block_diagonal_product(dim, blocks):
    q = cayley(random_skews(dim, blocks, 1.0, 1), dim)
    dense = torch.block_diag(*q)
    x = torch.randn(5, 3, blocks * dim, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rotate(x, q), x @ dense.T, atol=1e-5, rtol=1e-5)
    weight = torch.randn(11, blocks * dim, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(fold_input(weight, q), weight @ dense, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fold_output(weight.T.contiguous(), q), dense @ weight.T, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.block_diag(*tile(q)), dense)


def test_gram_gives_the_diagonal_blocks_of_the_full_product():
    left, right = torch.randn(50, 24), torch.randn(50, 24)
    full = left.T @ right
    torch.testing.assert_close(
        gram(left, right, 6),
        torch.stack([full[4 * j : 4 * j + 4, 4 * j : 4 * j + 4] for j in range(6)]),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("dim", [2, 4, 8, 32])
def test_gradient_through_the_folded_weight_equals_autograd_through_a_dense_rotation(dim):
    parameters = random_skews(dim, 64 // dim, 0.5, 4).double().requires_grad_()
    weight, bias = torch.randn(24, 64, dtype=torch.float64), torch.randn(24, dtype=torch.float64)
    x = torch.randn(2, 40, 64, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, 40, 24, dtype=torch.float64)
    dense = torch.nn.functional.linear(x @ torch.block_diag(*cayley(parameters, dim)).T, weight, bias)
    folded = FoldedLinear.apply(x, cayley(parameters, dim), weight, bias)
    torch.testing.assert_close(folded, dense)
    for ours, theirs in zip(
        torch.autograd.grad(folded, [x, parameters], upstream),
        torch.autograd.grad(dense, [x, parameters], upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
