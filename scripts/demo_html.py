"""The parts of the page of scripts/demo.py as HTML, in colors that suit a light and a dark page."""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from itertools import accumulate

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scripts.demo_model import Demo, Seen
from xcit.evaluation.cost import Cost

INK, ACCENT = "#010203", "#e8590c"
"""Of the plots. INK stands for the color of the page's text."""
PLOTS = {"seconds": "time in ms", "memory_mb": "memory in MB"}
SCALES = {"seconds": 1000.0, "memory_mb": 1.0}
STEADY = 0.9
"""A time below this share of one at a lower resolution is a sign of other work on the machine."""
FOR_VISITORS = {
    r"data\.channels|(data\.)?bit_depth(=\d+)?": "the model",
    r"data\.max_pixels=": "the limit of ",
    r"; only a run with data\.value_range takes floats": "",
}
"""Settings in messages, as patterns → words for visitors, who know no settings."""
SMALL = 128
"""Pictures with fewer pixels a side are enlarged without smoothing."""
CSS = """
.gradio-container { max-width: 1200px !important; width: 100%; margin: 0 auto !important; }
.block:has(.page-part) { padding: 0 !important; }
.gradio-container h1 { font-size: 1.5rem; font-weight: 650; margin: 0 0 .3rem; overflow-wrap: anywhere; }
.gradio-container h2 { font-size: 1.05rem; font-weight: 600; margin: .4rem 0; }
.page-part .file { margin: .4rem 0; opacity: .75; overflow-wrap: anywhere; }
.page-part { font-size: 1rem; line-height: 1.45; }
.page-part .note { opacity: .75; font-size: .9rem; }
.page-part .problem { border-left: 4px solid #e03131; padding: .5rem .8rem; overflow-wrap: anywhere; }
.answer { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.answer, .answer tr, .answer td { border: 0 !important; }
.answer td { padding: .3rem 0 !important; }
.answer td:first-child { overflow-wrap: anywhere; }
.answer td:last-child { text-align: right; white-space: nowrap; width: 5.5em; }
.answer .bar { height: .35rem; border-radius: 3px; margin-top: .2rem; background: rgb(128 128 128 / .2); }
.answer .bar div { height: 100%; border-radius: 3px; background: #e8590c; }
.ranked tr:first-child .name { font-weight: 650; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(180px, 45%), 1fr)); gap: .6rem; }
.pictures figure { margin: 0; } .pictures img { width: 100%; display: block; border-radius: 6px; }
.pictures .coarse { image-rendering: pixelated; }
.pictures figcaption { font-size: .85rem; opacity: .8; text-align: center; margin: .15rem 0 .3rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 1rem; }
.plots { max-width: 1000px; }
.plots svg { width: 100%; height: auto; }
"""


def part(content: str) -> str:
    return f'<div class="page-part">{content}</div>'


def heading(demo: Demo) -> str:
    height, width = demo.trained.preprocessing.size
    count = len(demo.trained.head.classes)
    what = {"class": "classes", "classes": "labels", "values": "numbers"}[demo.trained.head.kind]
    parameters = sum(parameter.numel() for parameter in demo.model.parameters()) / 1e6
    sentence = (
        f"What the model says of your image, and where its class token looks when it decides. {parameters:.1f} M "
        f"parameters, {count} {what}, trained on images of {width} × {height} pixels."
    )
    return part(f"<h1>{escape(demo.source)}</h1><p>{sentence}</p>")


def problem(line: str) -> str:
    for setting, words in FOR_VISITORS.items():
        line = re.sub(setting, words, line)
    return part(f'<p class="problem">{escape(line)}</p>')


def answer(seen: Seen) -> str:
    """The classes or labels with their probabilities, or the numbers."""
    found = seen.answer
    rows = []
    for name, amount in zip(found.names, found.values or found.probabilities, strict=True):
        mark = " ✓" if name in found.found else ""
        bar = "" if found.values else f'<div class="bar"><div style="width: {100 * amount:.2f}%"></div></div>'
        text = f"{amount:.4g}" if found.values else f"{100 * amount:.2f} %"
        rows.append(f'<tr><td><span class="name">{escape(name)}</span>{mark}{bar}</td><td>{text}</td></tr>')
    note = {
        "class": "The most likely classes.",
        "classes": f"The most likely labels. ✓ marks labels above their thresholds; of all labels: "
        f"{', '.join(found.found) or 'none'}.",
        "values": "The numbers that the model predicts.",
    }[seen.kind]
    cost = f"{1000 * seen.cost.seconds:,.1f} ms and {seen.cost.memory_mb:,.1f} MB for this image"
    height, width, _ = seen.picture.shape
    return part(
        f'<p class="file">{escape(seen.name)}</p>'
        f'<table class="answer{"" if found.values else " ranked"}">{"".join(rows)}</table>'
        f'<p class="note">{escape(note)} {cost} at {width} × {height} pixels.</p>'
    )


def maps(seen: Seen) -> str:
    """The picture, and a map of each head."""
    if not seen.maps:
        note = "The model has no class token that attends to patches, so there are no attention maps."
        return part(f'<div class="pictures">{picture(seen.picture, "model input")}</div><p class="note">{note}</p>')
    rows, columns = seen.patches
    figures = [picture(one, f"head {number}") for number, one in enumerate(seen.maps, 1)]
    return part(
        "<h2>Where the class token looks</h2>"
        f'<div class="pictures">{picture(seen.picture, "model input")}{"".join(figures)}</div>'
        f'<p class="note">One map for each of the {len(figures)} heads of the last class-attention layer, {rows} × '
        f"{columns} patches. The brighter a patch, the more of it goes into the answer; each map has its own scale.</p>"
    )


def picture(pixels: Tensor, caption: str) -> str:
    """pixels: (H, W, 3), uint8."""
    image, file = Image.fromarray(pixels.numpy()), io.BytesIO()
    small = max(image.size) < SMALL
    image.save(file, **{"format": "PNG"} if small else {"format": "JPEG", "quality": 90})
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"
    coarse = ' class="coarse"' if small else ""
    return f'<figure><img src="{source}" alt="{caption}"{coarse}><figcaption>{caption}</figcaption></figure>'


def growth(curve: Sequence[Cost], here: Cost | None, measured: str) -> str:
    """The costs over the resolution, and those of the image if there is one."""
    first, last = curve[0], curve[-1]
    more = (last.resolution / first.resolution) ** 2
    note = f"The curves were {escape(measured)}, with one image."
    longest = list(accumulate((cost.seconds for cost in curve), max))
    if any(cost.seconds < STEADY * before for cost, before in zip(curve, longest, strict=True)):
        note += (
            " The times do not grow with the resolution, since this machine was busy when they were measured. "
            "Start the server again when the machine is idle."
        )
    elif len(curve) > 1:
        note += (
            f" From {first.resolution} to {last.resolution} pixels an image has {more:.3g} × the pixels and takes "
            f"{last.seconds / first.seconds:.3g} × the time."
        )
    if here:
        note += " The dot is your image."
    plots = "".join(plot(curve, here, what) for what in PLOTS)
    return part(f'<h2>What the resolution costs</h2><div class="plots">{plots}</div><p class="note">{note}</p>')


def plot(curve: Sequence[Cost], here: Cost | None, what: str) -> str:
    """One quantity over the resolution, as SVG."""
    settings = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), INK)
    with rc_context(settings):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*points(curve, what), color=INK, linewidth=1.5, marker="o", markersize=4)
        if here:
            axes.plot(*points([here], what), color=ACCENT, marker="o", markersize=9)
        axes.set(xlabel="resolution in pixels", title=PLOTS[what], ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    drawn = file.getvalue()
    return drawn[drawn.index("<svg") :].replace(INK, "currentColor")


def points(costs: Sequence[Cost], what: str) -> tuple[list[int], list[float]]:
    return [cost.resolution for cost in costs], [SCALES[what] * getattr(cost, what) for cost in costs]
