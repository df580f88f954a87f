"""Cross-covariance attention in Triton: two passes over the tokens forward and two backward, and nothing in between.

In each direction one kernel reads the tokens of a head once, for its d × d matrices, and a second writes the tokens.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cpu.library import like_attend, like_attend_backward
from ..custom_op import opaque
from .launch import device_of

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Triton's interpreter on the CPU takes the bits of bf16 for integers in a product."""


@opaque("xcit::attend_by_triton", like_attend)
def attend_by_triton(qkv: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `cross_covariance.forward` returns, in fp32 or bf16, with d up to 128."""
    qkv = qkv.contiguous()
    B, N, heads, d = sizes(qkv, temperature)
    padded, tile, warps = tiling(d, qkv.dtype)
    y, inverse, cosines, attention = made = like_attend(qkv, temperature)
    shape = N, heads, d, padded, tile
    with device_of(qkv):
        attention_kernel[(B * heads,)](
            qkv, temperature.contiguous(), inverse, cosines, attention, *shape, num_warps=warps
        )
        mix_kernel[(B * heads, triton.cdiv(N, tile))](qkv, attention, y, *shape, num_warps=warps)
    return made


@opaque("xcit::attend_backward_by_triton", like_attend_backward)
def attend_backward_by_triton(
    gradient: Tensor, qkv: Tensor, temperature: Tensor, inverse: Tensor, cosines: Tensor, attention: Tensor
) -> tuple[Tensor, Tensor]:
    """What `cross_covariance.backward` returns."""
    qkv, gradient = qkv.contiguous(), gradient.to(qkv.dtype).contiguous()
    B, N, heads, d = sizes(qkv, temperature)
    padded, tile, warps = tiling(d, qkv.dtype)
    of_products, shares = torch.empty_like(cosines), torch.empty_like(inverse)
    of_temperature = inverse.new_empty(B, heads)
    of_qkv = torch.empty_like(qkv)
    shape = N, heads, d, padded, tile
    saved = temperature.contiguous(), inverse, cosines, attention
    with device_of(qkv):
        of_scores_kernel[(B * heads,)](
            qkv, gradient, *saved, of_products, shares, of_temperature, *shape, num_warps=warps
        )
        of_tokens_kernel[(B * heads, triton.cdiv(N, tile))](
            qkv, gradient, attention, of_products, shares, of_qkv, *shape, num_warps=warps
        )
    return of_qkv, of_temperature.sum(0)[:, None, None].to(temperature.dtype)


def sizes(qkv: Tensor, temperature: Tensor) -> tuple[int, int, int, int]:
    """B, N, heads and d."""
    return qkv.shape[0], qkv.shape[1], len(temperature), qkv.shape[2] // (3 * len(temperature))


def tiling(d: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """d padded to a power of two, the tokens of a tile and the warps for it: what fits into registers.

    Products in fp32 go without the tensor cores and need more of them.
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
    image, head, width = head_of_image(heads, d)
    channels, inside, square, in_square = of_head(d, padded)
    qkv += image * tokens * 3 * width + head * d
    products = tl.zeros((padded, padded), tl.float32)
    q_squares = tl.zeros((tile, padded), tl.float32)
    k_squares = tl.zeros((tile, padded), tl.float32)
    for start in range(0, tokens, tile):
        at, valid = of_tile(start, tokens, 3 * width, channels, inside, tile)
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
    image, head, width = head_of_image(heads, d)
    channels, inside, square, in_square = of_head(d, padded)
    start = tl.program_id(1) * tile
    at, valid = of_tile(start, tokens, 3 * width, channels, inside, tile)
    v = tl.load(qkv + image * tokens * 3 * width + 2 * width + head * d + at, valid, other=0.0)
    weights = tl.load(attention + (image * heads + head) * d * d + square, in_square, other=0.0).to(v.dtype)
    mixed = add_product(tl.zeros((tile, padded), tl.float32), v, tl.trans(weights))
    at, valid = of_tile(start, tokens, width, channels, inside, tile)
    tl.store(y + image * tokens * width + head * d + at, mixed, valid)


@triton.jit
def of_scores_kernel(
    qkv: tl.tensor,
    gradient: tl.tensor,
    temperature: tl.tensor,
    inverse: tl.tensor,
    cosines: tl.tensor,
    attention: tl.tensor,
    of_products: tl.tensor,
    shares: tl.tensor,
    of_temperature: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradients of qᵀk and of the temperature, and what the norms take back, of one head of one image."""
    image, head, width = head_of_image(heads, d)
    channels, inside, square, in_square = of_head(d, padded)
    v_of_head = qkv + image * tokens * 3 * width + 2 * width + head * d
    gradient += image * tokens * width + head * d
    of_weights = tl.zeros((padded, padded), tl.float32)
    for start in range(0, tokens, tile):
        at, valid = of_tile(start, tokens, width, channels, inside, tile)
        g = tl.load(gradient + at, valid, other=0.0)
        at, valid = of_tile(start, tokens, 3 * width, channels, inside, tile)
        v = tl.load(v_of_head + at, valid, other=0.0)
        of_weights = add_product(of_weights, tl.trans(g), v)

    square += (image * heads + head) * d * d
    weights = tl.load(attention + square, in_square, other=0.0)
    cosine = tl.load(cosines + square, in_square, other=0.0)
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None])
    tl.store(of_temperature + image * heads + head, tl.sum(tl.sum(of_scores * cosine, 1), 0))

    of_cosines = of_scores * tl.load(temperature + head).to(tl.float32)
    of_head_inverse = image * 2 * width + head * d + channels
    q_inverse = tl.load(inverse + of_head_inverse, inside, other=0.0)
    k_inverse = tl.load(inverse + of_head_inverse + width, inside, other=0.0)
    tl.store(of_products + square, of_cosines * (q_inverse[:, None] * k_inverse[None, :]), in_square)
    # A column's own norm takes back what the product gives it in its own direction.
    along = of_cosines * cosine
    tl.store(shares + of_head_inverse, tl.sum(along, 1) * q_inverse * q_inverse, inside)
    tl.store(shares + of_head_inverse + width, tl.sum(along, 0) * k_inverse * k_inverse, inside)


@triton.jit
def of_tokens_kernel(
    qkv: tl.tensor,
    gradient: tl.tensor,
    attention: tl.tensor,
    of_products: tl.tensor,
    shares: tl.tensor,
    of_qkv: tl.tensor,
    tokens: int,
    heads: int,
    d: int,
    padded: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    """The gradients of queries, keys and values of one head for one tile of the tokens of one image."""
    image, head, width = head_of_image(heads, d)
    channels, inside, square, in_square = of_head(d, padded)
    start = tl.program_id(1) * tile
    zeros = tl.zeros((tile, padded), tl.float32)
    square += (image * heads + head) * d * d

    at, valid = of_tile(start, tokens, width, channels, inside, tile)
    g = tl.load(gradient + image * tokens * width + head * d + at, valid, other=0.0)
    at, valid = of_tile(start, tokens, 3 * width, channels, inside, tile)
    at += image * tokens * 3 * width + head * d
    weights = tl.load(attention + square, in_square, other=0.0).to(g.dtype)
    tl.store(of_qkv + 2 * width + at, add_product(zeros, g, weights), valid)

    q = tl.load(qkv + at, valid, other=0.0)
    k = tl.load(qkv + width + at, valid, other=0.0)
    products = tl.load(of_products + square, in_square, other=0.0).to(q.dtype)
    of_head_shares = shares + image * 2 * width + head * d + channels
    q_share = tl.load(of_head_shares, inside, other=0.0)
    k_share = tl.load(of_head_shares + width, inside, other=0.0)
    tl.store(of_qkv + at, add_product(-q.to(tl.float32) * q_share[None, :], k, tl.trans(products)), valid)
    tl.store(of_qkv + width + at, add_product(-k.to(tl.float32) * k_share[None, :], q, products), valid)


@triton.jit
def head_of_image(heads: int, d: int) -> tuple[tl.tensor, ...]:
    """Which image and head the program works on, and C. From the image on offsets have 64 bits."""
    program = tl.program_id(0)
    return (program // heads).to(tl.int64), program % heads, heads * d


@triton.jit
def of_head(d: int, padded: tl.constexpr) -> tuple[tl.tensor, ...]:
    """A head's channels and the places of its d × d matrices, each with the mask of those that are there."""
    channels = tl.arange(0, padded)
    inside = channels < d
    return channels, inside, channels[:, None] * d + channels[None, :], inside[:, None] & inside[None, :]


@triton.jit
def of_tile(
    start: int, tokens: int, stride: int, channels: tl.tensor, inside: tl.tensor, tile: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The places (tile, padded) of a head's channels in the tokens from start on, and their mask."""
    token = start + tl.arange(0, tile)
    return token[:, None] * stride + channels[None, :], (token < tokens)[:, None] & inside[None, :]


@triton.jit
def add_product(total: tl.tensor, a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """total + a · b, in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
