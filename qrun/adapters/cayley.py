"""Cayley blocks: Q = (I - K/2)(I + K/2)^-1 for real skew-symmetric K, one b x b block per slice of b channels.

Q is orthogonal with determinant +1 for every K, and K = 0 is the identity (arXiv:2605.05914; the same map as OFT,
arXiv:2306.07280, with K/2 in the place of its Q). The solve is exact; truncated Neumann series leave the orthogonal
group as soon as K is not small, and a block that is not orthogonal is no circuit.

Row vectors are used throughout: z = Q x for a slice x reads z = x @ Q^T.
"""

from typing import Any

import torch
from torch import Tensor

# small blocks are gathered into diagonal tiles this wide where products with tiny matrices would waste the processor
TILE = 32


def skew(parameters: Tensor, dim: int) -> Tensor:
    """Skew-symmetric K [blocks, b, b] from its strict upper triangle, row by row, [blocks, b(b-1)/2]."""
    rows, columns = torch.triu_indices(dim, dim, offset=1, device=parameters.device)
    upper = parameters.new_zeros(parameters.shape[0], dim, dim)
    upper[:, rows, columns] = parameters
    return upper - upper.transpose(1, 2)


def cayley(parameters: Tensor, dim: int) -> Tensor:
    """Q [blocks, b, b] of the parameters' dtype. Solved in float64: rounding of the result is then all that separates
    Q^T Q from I. I + K/2 is always invertible (the eigenvalues of K are imaginary). Its factors commute, so solve(I +
    K/2, I - K/2) is Q."""
    half = skew(parameters.double(), dim) / 2
    identity = torch.eye(dim, dtype=half.dtype, device=half.device)
    return torch.linalg.solve(identity + half, identity - half).to(parameters.dtype)


def tile(blocks: Tensor, width: int = TILE) -> Tensor:
    """Gather blocks [B, b, b] into diagonal tiles [B/r, rb, rb], r the largest divisor of B with rb <= width. Shape
    unchanged for large b."""
    count, dim, _ = blocks.shape
    r = max(r for r in range(1, max(width // dim, 1) + 1) if count % r == 0)
    if r == 1:
        return blocks
    tiles = blocks.new_zeros(count // r, r, dim, r, dim)
    index = torch.arange(r, device=blocks.device)
    tiles[:, index, :, index, :] = blocks.view(count // r, r, dim, dim).transpose(0, 1)
    return tiles.view(count // r, r * dim, r * dim)


def rotate(x: Tensor, blocks: Tensor) -> Tensor:
    """z_j = Q_j x_j for every slice: x [..., B b], blocks [B, b, b] -> [..., B b]."""
    tiles = tile(blocks)
    slices = x.reshape(-1, tiles.shape[0], tiles.shape[1]).transpose(0, 1)
    return torch.bmm(slices, tiles.transpose(1, 2)).transpose(0, 1).reshape(x.shape)


def fold_input(weight: Tensor, blocks: Tensor) -> Tensor:
    """W Q for W [out, B b]: column slice j becomes W_j Q_j."""
    return rotate(weight, blocks.transpose(1, 2))


def fold_output(weight: Tensor, blocks: Tensor) -> Tensor:
    """Q W for W [B b, in]: row slice j becomes Q_j W_j."""
    dim = blocks.shape[-1]
    return torch.bmm(blocks, weight.view(-1, dim, weight.shape[1])).reshape(weight.shape)


def gram(left: Tensor, right: Tensor, count: int) -> Tensor:
    """Diagonal blocks of left^T right. Sum over tokens of left_j right_j^T, [count, b, b], for left, right [N, count
    b]."""
    n, width = left.shape
    dim = width // count
    r = max(r for r in range(1, max(TILE // dim, 1) + 1) if count % r == 0)
    tiles = torch.bmm(
        left.view(n, count // r, r * dim).permute(1, 2, 0), right.view(n, count // r, r * dim).transpose(0, 1)
    )
    index = torch.arange(r, device=left.device)
    return tiles.view(count // r, r, dim, r, dim)[:, index, :, index, :].transpose(0, 1).reshape(count, dim, dim)


class FoldedLinear(torch.autograd.Function):
    """y = (W Q) x + c with Q folded into the frozen W, and the gradient of Q without a gradient of the folded weight.

    With u = W^T g the gradient of z = Q x, dQ_j = sum_n u_j x_j^T. The backward pass already has dx = (W Q)^T g =
    Q^T u, and Q is orthogonal, so u = Q dx and dQ_j = Q_j sum_n dx_j x_j^T: the diagonal blocks of dx^T x, no third
    large product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in], blocks [B, b, b] in float32, weight [out, in]; the product runs in x's dtype."""
        folded = fold_input(weight, blocks.to(weight.dtype))
        ctx.save_for_backward(x, blocks, folded)
        return torch.nn.functional.linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, blocks, folded = ctx.saved_tensors
        dx = grads[0] @ folded
        products = gram(dx.reshape(-1, dx.shape[-1]), x.reshape(-1, x.shape[-1]), blocks.shape[0])
        return dx, blocks @ products.to(blocks.dtype), None, None
