"""Cross-covariance attention in Triton: two passes over the tokens forward and two backward.

In each direction one kernel reads the tokens of a head and computes its d × d matrices; a second one writes the tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter on the CPU reads bf16 as integers in a product."""


def attend_forward(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `torch_forward` in ../cross_covariance.py. In fp32 or bf16, with d up to 128."""
    qkv = qkv.contiguous()
    B, N, heads, d = sizes(qkv, temperature)
    padded, tile, warps = tiling(d, qkv.dtype)
    y = qkv.new_empty(B, N, heads * d)
    inverse = qkv.new_empty(B, 2, heads, d, dtype=torch.float32)
    cosines, attention = (inverse.new_empty(B, heads, d, d) for _ in range(2))
    shape = N, heads, d, padded, tile
    with device_of(qkv):
        attention_kernel[(B * heads,)](
            qkv, temperature.contiguous(), inverse, cosines, attention, *shape, num_warps=warps
        )
        mix_kernel[(B * heads, triton.cdiv(N, tile))](qkv, attention, y, *shape, num_warps=warps)
    return y, inverse, cosines, attention


def attend_backward(
    grad: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """See `torch_backward` in ../cross_covariance.py."""
    qkv, grad = qkv.contiguous(), grad.to(qkv.dtype).contiguous()
    B, N, heads, d = sizes(qkv, temperature)
    padded, tile, warps = tiling(d, qkv.dtype)
    grad_products, along = torch.empty_like(cosines), torch.empty_like(inverse)
    grad_temperature = inverse.new_empty(B, heads)
    grad_qkv = torch.empty_like(qkv)
    shape = N, heads, d, padded, tile
    saved = temperature.contiguous(), inverse, cosines, attention
    with device_of(qkv):
        grad_scores_kernel[(B * heads,)](
            qkv, grad, *saved, grad_products, along, grad_temperature, *shape, num_warps=warps
        )
        grad_tokens_kernel[(B * heads, triton.cdiv(N, tile))](
            qkv, grad, attention, grad_products, along, grad_qkv, *shape, num_warps=warps
        )
    return grad_qkv, grad_temperature.sum(0)[:, None, None].to(temperature.dtype)


def sizes(qkv: Tensor, temperature: Tensor) -> tuple[int, int, int, int]:
    """B, N, heads and d."""
    return qkv.shape[0], qkv.shape[1], len(temperature), qkv.shape[2] // (3 * len(temperature))


def tiling(d: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """d padded to a power of two, the tokens of a tile, and its warps: as much as fits into registers.

    Products in fp32 do not use the tensor cores and need more registers.
    """
    padded = max(16, triton.next_power_of_2(d))
    small = dtype == torch.bfloat16 and padded <= 64
    return padded, (64 if dtype == torch.bfloat16 else 32) // (1 if padded <= 64 else 2), 4 if small else 8


@triton.jit
def attention_kernel(
    qkv: tl.tensor,
    temperature: tl.tensor,
    inverse: tl.tensor,
    cosines: tl.tensor,
    attention: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """Inverse norms, cosines and attention of one head of one image."""
    image, head, width = locate_head(heads, d)
    channels, inside, square, in_square = head_offsets(d, padded)
    qkv += image * tokens * 3 * width + head * d
    products = tl.zeros((padded, padded), tl.float32)
    q_squares = tl.zeros((tile, padded), tl.float32)
    k_squares = tl.zeros((tile, padded), tl.float32)
    for start in range(0, tokens, tile):
        at, valid = tile_offsets(start, tokens, 3 * width, channels, inside, tile)
        q = tl.load(qkv + at, valid, other=0.0)
        k = tl.load(qkv + width + at, valid, other=0.0)
        products = add_product(products, tl.trans(q), k)
        q_squares += q.to(tl.float32) * q.to(tl.float32)
        k_squares += k.to(tl.float32) * k.to(tl.float32)
    q_inverse = 1 / tl.maximum(tl.sqrt_rn(tl.sum(q_squares, 0)), 1e-12)
    k_inverse = 1 / tl.maximum(tl.sqrt_rn(tl.sum(k_squares, 0)), 1e-12)
    products *= q_inverse[:, None] * k_inverse[None, :]

    scores = products * tl.load(temperature + head).to(tl.float32)
    scores = tl.where(inside[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    weights /= tl.sum(weights, 1)[:, None]

    inverse += image * 2 * width + head * d + channels
    tl.store(inverse, q_inverse, inside)
    tl.store(inverse + width, k_inverse, inside)
    square += (image * heads + head) * d * d
    tl.store(cosines + square, products, in_square)
    tl.store(attention + square, weights, in_square)


@triton.jit
def mix_kernel(
    qkv: tl.tensor,
    attention: tl.tensor,
    y: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """V · Aᵀ of one head for one tile of the tokens of one image."""
    image, head, width = locate_head(heads, d)
    channels, inside, square, in_square = head_offsets(d, padded)
    start = tl.program_id(1) * tile
    at, valid = tile_offsets(start, tokens, 3 * width, channels, inside, tile)
    v = tl.load(qkv + image * tokens * 3 * width + 2 * width + head * d + at, valid, other=0.0)
    weights = tl.load(attention + (image * heads + head) * d * d + square, in_square, other=0.0).to(v.dtype)
    mixed = add_product(tl.zeros((tile, padded), tl.float32), v, tl.trans(weights))
    at, valid = tile_offsets(start, tokens, width, channels, inside, tile)
    tl.store(y + image * tokens * width + head * d + at, mixed, valid)


@triton.jit
def grad_scores_kernel(
    qkv: tl.tensor,
    grad: tl.tensor,
    temperature: tl.tensor,
    inverse: tl.tensor,
    cosines: tl.tensor,
    attention: tl.tensor,
    grad_products: tl.tensor,
    along: tl.tensor,
    grad_temperature: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradients of qᵀk and of the temperature, and the parts along q and k, of one head of one image."""
    image, head, width = locate_head(heads, d)
    channels, inside, square, in_square = head_offsets(d, padded)
    v_of_head = qkv + image * tokens * 3 * width + 2 * width + head * d
    grad += image * tokens * width + head * d
    grad_weights = tl.zeros((padded, padded), tl.float32)
    for start in range(0, tokens, tile):
        at, valid = tile_offsets(start, tokens, width, channels, inside, tile)
        g = tl.load(grad + at, valid, other=0.0)
        at, valid = tile_offsets(start, tokens, 3 * width, channels, inside, tile)
        v = tl.load(v_of_head + at, valid, other=0.0)
        grad_weights = add_product(grad_weights, tl.trans(g), v)

    square += (image * heads + head) * d * d
    weights = tl.load(attention + square, in_square, other=0.0)
    cosine = tl.load(cosines + square, in_square, other=0.0)
    grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None])
    tl.store(grad_temperature + image * heads + head, tl.sum(tl.sum(grad_scores * cosine, 1), 0))

    grad_cosines = grad_scores * tl.load(temperature + head).to(tl.float32)
    head_inverse = image * 2 * width + head * d + channels
    q_inverse = tl.load(inverse + head_inverse, inside, other=0.0)
    k_inverse = tl.load(inverse + head_inverse + width, inside, other=0.0)
    tl.store(grad_products + square, grad_cosines * (q_inverse[:, None] * k_inverse[None, :]), in_square)
    # Scaling a column does not change the normalized one, so the gradient has no component along the column.
    cosine_gradients = grad_cosines * cosine
    tl.store(along + head_inverse, tl.sum(cosine_gradients, 1) * q_inverse * q_inverse, inside)
    tl.store(along + head_inverse + width, tl.sum(cosine_gradients, 0) * k_inverse * k_inverse, inside)


@triton.jit
def grad_tokens_kernel(
    qkv: tl.tensor,
    grad: tl.tensor,
    attention: tl.tensor,
    grad_products: tl.tensor,
    along: tl.tensor,
    grad_qkv: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradients of queries, keys and values of one head for one tile of the tokens of one image."""
    image, head, width = locate_head(heads, d)
    channels, inside, square, in_square = head_offsets(d, padded)
    start = tl.program_id(1) * tile
    zeros = tl.zeros((tile, padded), tl.float32)
    square += (image * heads + head) * d * d

    at, valid = tile_offsets(start, tokens, width, channels, inside, tile)
    g = tl.load(grad + image * tokens * width + head * d + at, valid, other=0.0)
    at, valid = tile_offsets(start, tokens, 3 * width, channels, inside, tile)
    at += image * tokens * 3 * width + head * d
    weights = tl.load(attention + square, in_square, other=0.0).to(g.dtype)
    tl.store(grad_qkv + 2 * width + at, add_product(zeros, g, weights), valid)

    q = tl.load(qkv + at, valid, other=0.0)
    k = tl.load(qkv + width + at, valid, other=0.0)
    products = tl.load(grad_products + square, in_square, other=0.0).to(q.dtype)
    head_along = along + image * 2 * width + head * d + channels
    q_along = tl.load(head_along, inside, other=0.0)
    k_along = tl.load(head_along + width, inside, other=0.0)
    tl.store(grad_qkv + at, add_product(-q.to(tl.float32) * q_along[None, :], k, tl.trans(products)), valid)
    tl.store(grad_qkv + width + at, add_product(-k.to(tl.float32) * k_along[None, :], q, products), valid)


@triton.jit
def locate_head(heads: int, d: int) -> tuple[tl.tensor, ...]:
    """The image and head of the program, and C. The image has 64 bits, and so have offsets computed from it."""
    program = tl.program_id(0)
    return (program // heads).to(tl.int64), program % heads, heads * d


@triton.jit
def head_offsets(d: int, padded: tl.constexpr) -> tuple[tl.tensor, ...]:
    """A head's channels, and the offsets in its d × d matrices, each with the mask of those that exist."""
    channels = tl.arange(0, padded)
    inside = channels < d
    return channels, inside, channels[:, None] * d + channels[None, :], inside[:, None] & inside[None, :]


@triton.jit
def tile_offsets(
    start: int, tokens: int, stride: int, channels: tl.tensor, inside: tl.tensor, tile: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The offsets (tile, padded) of a head's channels in the tokens from start on, and their mask."""
    token = start + tl.arange(0, tile)
    return token[:, None] * stride + channels[None, :], (token < tokens)[:, None] & inside[None, :]


@triton.jit
def add_product(total: tl.tensor, a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """total + a · b, in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
