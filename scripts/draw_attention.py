"""Draw the README's figure: cross-covariance attention beside self-attention.

    python scripts/draw_attention.py                        # writes docs/images/xca.svg
    python scripts/draw_attention.py --output xca.png       # or another format that matplotlib knows

Each panel shows one head on a small random example: N tokens with d channels. The shades show computed values, so the
maps are real attention maps. The output depends only on this file and on matplotlib's version.
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from xcit.command import ArgumentParser, guarded
from xcit.errors import InputError

TOKENS, CHANNELS = 12, 4
CELL = 9.5
"""Side of a matrix entry. The unit is a pixel of a figure that is 800 pixels wide."""
WIDTH, HEIGHT = 800, 478
PICKED = (4, 9)
"""The two tokens whose comparison is marked."""
COLORS = {"Q": "#2f6fb0", "K": "#d9730d", "V": "#2e8b57", "map": "#8e44ad", "output": "#4d5661"}
INK = "#1f2933"


def softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)


def unit(matrix: np.ndarray) -> np.ndarray:
    """The matrix with columns of length 1: L2 normalization along the tokens."""
    return matrix / np.linalg.norm(matrix, axis=0)


def matrix(axes: Axes, values: np.ndarray, left: float, middle: float, kind: str, name: str, shape: str) -> Rectangle:
    """Draw a matrix centered at height `middle`, with its name above and its shape below."""
    rows, columns = values.shape
    bottom, width, height = middle - rows * CELL / 2, columns * CELL, rows * CELL
    shades = LinearSegmentedColormap.from_list(kind, ["#ffffff", COLORS[kind]])
    scaled = 0.12 + 0.6 * (values - values.min()) / (values.max() - values.min())
    for row in range(rows):
        for column in range(columns):
            corner = (left + column * CELL + 0.4, bottom + (rows - 1 - row) * CELL + 0.4)
            axes.add_patch(
                Rectangle(corner, CELL - 0.8, CELL - 0.8, color=shades(scaled[row, column]), lw=0, clip_on=False)
            )
    frame = Rectangle((left, bottom), width, height, fill=False, edgecolor=COLORS[kind], lw=1.4)
    axes.add_patch(frame)
    axes.text(left + width / 2, bottom + height + 5, name, ha="center", va="bottom", size=10.5, color=COLORS[kind])
    axes.text(left + width / 2, bottom - 5, shape, ha="center", va="top", size=9.5, color=INK)
    return frame


def mark(axes: Axes, frame: Rectangle, row: int | None = None, column: int | None = None) -> None:
    """Outline a row, a column, or the entry where both meet."""
    left, bottom, width, height = frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()
    if row is not None:
        bottom, height = bottom + height - (row + 1) * CELL, CELL
    if column is not None:
        left, width = left + column * CELL, CELL
    axes.add_patch(Rectangle((left, bottom), width, height, fill=False, edgecolor="black", lw=1.8))


def sign(axes: Axes, x: float, y: float, text: str, under: str = "") -> None:
    axes.text(x, y, text, ha="center", va="center", size=13, color=INK)
    axes.text(x, y - 9, under, ha="center", va="top", size=8, color=INK)


def heading(axes: Axes, middle: float, title: str, subtitle: str, formula: str, cost: str, example: str) -> None:
    axes.text(middle, HEIGHT - 28, title, ha="center", size=14, weight="bold", color=INK)
    axes.text(middle, HEIGHT - 49, subtitle, ha="center", size=10, color=INK)
    axes.text(middle, HEIGHT - 76, formula, ha="center", size=11.5, color=INK)
    axes.text(middle, 40, cost, ha="center", size=10.5, weight="bold", color=INK)
    axes.text(middle, 20, example, ha="center", size=8.5, color=INK)


def draw(axes: Axes) -> None:
    random = np.random.default_rng(4)
    q, k, v = random.normal(size=(3, TOKENS, CHANNELS))
    tall, wide = TOKENS * CELL, CHANNELS * CELL
    first, second = 302, 143  # heights of the two rows' middles
    i, j = PICKED

    # Left, above: the map of tokens. Below: the output.
    tokens = softmax(2 * q @ k.T / np.sqrt(CHANNELS), axis=1)
    x = 24.0
    mark(axes, matrix(axes, q, x, first, "Q", "$Q$", "$N × d$"), row=i)
    sign(axes, x + wide + 15, first, "×")
    mark(axes, matrix(axes, k.T, x + wide + 30, first, "K", "$K^T$", "$d × N$"), column=j)
    sign(axes, x + wide + tall + 58, first, "→", "softmax")
    mark(axes, matrix(axes, tokens, x + wide + tall + 86, first, "map", "attention map", "$N × N$"), row=i, column=j)
    x = 63.0
    matrix(axes, tokens, x, second, "map", "map", "$N × N$")
    sign(axes, x + tall + 20, second, "×")
    matrix(axes, v, x + tall + 40, second, "V", "$V$", "$N × d$")
    sign(axes, x + tall + wide + 62, second, "=")
    matrix(axes, tokens @ v, x + tall + wide + 84, second, "output", "output", "$N × d$")

    # Right, above: the map of channels. Below: the output.
    channels = softmax(4 * unit(k).T @ unit(q), axis=0)
    x = 452.0
    mark(axes, matrix(axes, unit(k).T, x, first, "K", r"$\hat{K}^T$", "$d × N$"), row=1)
    sign(axes, x + tall + 20, first, "×")
    mark(axes, matrix(axes, unit(q), x + tall + 40, first, "Q", r"$\hat{Q}$", "$N × d$"), column=2)
    sign(axes, x + tall + wide + 70, first, "→", "softmax")
    mark(axes, matrix(axes, channels, x + tall + wide + 106, first, "map", "attention map", "$d × d$"), row=1, column=2)
    x = 495.0
    matrix(axes, v, x, second, "V", "$V$", "$N × d$")
    sign(axes, x + wide + 24, second, "×")
    matrix(axes, channels, x + wide + 48, second, "map", "map", "$d × d$")
    sign(axes, x + 2 * wide + 72, second, "=")
    matrix(axes, v @ channels, x + 2 * wide + 96, second, "output", "output", "$N × d$")

    heading(
        axes,
        WIDTH / 4,
        "Self-attention",
        "compares every token with every token",
        r"$\mathrm{softmax}(Q K^T / \sqrt{d})\; V$",
        r"cost $N^2 d$: quadratic in the number of pixels",
        "one head of S12/16: N = 196 tokens at 224 px, 576 at 384 px",
    )
    heading(
        axes,
        3 * WIDTH / 4,
        "Cross-covariance attention (XCA)",
        "compares every channel with every channel",
        r"$V\; \mathrm{softmax}(\hat{K}^T \hat{Q} / \tau)$",
        r"cost $N d^2$: linear in the number of pixels",
        "one head of S12/16: d = 48 channels at every resolution",
    )
    axes.plot([WIDTH / 2] * 2, [14, HEIGHT - 14], color="#cbd2d9", lw=1)


@guarded
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--output", default=str(Path(__file__).parents[1] / "docs/images/xca.svg"))
    output = Path(parser.parse_args().output)
    settings = {"svg.fonttype": "path", "svg.hashsalt": "xca", "mathtext.fontset": "stixsans"}
    with matplotlib.rc_context(settings):
        figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
        axes.axis("off")
        draw(axes)
        try:
            figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)
        except (OSError, ValueError) as error:
            raise InputError(f"--output={output}: cannot be written ({error})") from None


if __name__ == "__main__":
    main()
