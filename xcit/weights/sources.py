"""Find and download weights: from a file, a run folder, the hub, a URL, or a published name."""

import hashlib
import os
import re
import sys
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from huggingface_hub import hf_hub_download

from ..checkpoint import LAST
from ..errors import InputError, did_you_mean
from .published import BY_FILE, PUBLISHED, find_published

HUB_FILE, HUB_CONFIG = "model.safetensors", "config.json"
HUB_PREFIX = "hf-hub:"
STATED_HASH = re.compile(r"-([0-9a-f]{8,})\.")


def locate(source: str) -> Path:
    """The file that `source` names. It is downloaded to the cache of torch.hub or of the Hugging Face hub if needed.

    Args:
        source: one of
            - a file of weights, a run folder (its last checkpoint), or a folder that `save_pretrained` wrote;
            - a name of `list_pretrained()`, or the authors' file name with or without .pth: the authors' file;
            - a name in timm, xcit_small_12_p16_224.fb_in1k, or timm/NAME for any other model: the copy on the hub;
            - hf-hub:OWNER/NAME: a repository that `push_to_hub` wrote;
            - a URL (http, https).

    Raises:
        InputError: the source is none of these, or cannot be downloaded.
    """
    path = Path(source)
    if path.is_dir():
        return path / HUB_FILE if (path / HUB_FILE).is_file() else find_in_folder(path)
    if path.exists():
        return path
    if urlparse(source).scheme in ("http", "https"):
        return download(source, cached_as(source))
    if source.startswith(HUB_PREFIX):
        with suppress(InputError):  # eval.py reads the configuration beside the weights, if there is one
            from_hub(source.removeprefix(HUB_PREFIX), HUB_CONFIG)
        return from_hub(source.removeprefix(HUB_PREFIX))
    entry = find_published(source)
    if entry and source.removeprefix("timm/") == entry.timm_name:
        return from_hub(f"timm/{entry.timm_name}")
    if entry and "/" not in source:
        return download(entry.url, entry.file)
    if source.startswith("timm/"):
        return from_hub(source)
    tags = {entry.tag for entry in PUBLISHED.values()}
    nearest = did_you_mean(source, [*PUBLISHED, *BY_FILE, *sorted(tags)])
    raise InputError(f"{source}: no such file or run folder, nor the name of published weights{nearest}")


def find_in_folder(folder: Path) -> Path:
    if not (folder / LAST).is_file():
        raise InputError(f"{folder}: holds neither a run's {LAST} nor {HUB_FILE}")
    return folder / LAST


def cached_as(url: str) -> str:
    """A file name in the cache that is unique to the URL: many files are called model.safetensors."""
    name = Path(urlparse(url).path).name
    if not name:
        raise InputError(f"{url}: names no file")
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}/{name}"


def download(url: str, name: str) -> Path:
    """The file at a URL, from torch.hub's cache or downloaded. A hash in its name is checked."""
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        print(f"downloading {url} to {path}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(url, path)
        except (OSError, HTTPException, RuntimeError) as error:
            raise cannot_download(url, error) from None
    return path


def fetch(url: str, path: Path) -> None:
    """Download a URL to a file. The file appears only when it is complete."""
    stated_hash, length = STATED_HASH.search(path.name), stated_length(url)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.hub.download_url_to_file(url, str(aside), stated_hash and stated_hash[1], progress=sys.stderr.isatty())
        if length is not None and aside.stat().st_size != length:
            raise OSError(f"broke off after {aside.stat().st_size} of {length} bytes")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def stated_length(url: str) -> int | None:
    """The number of bytes that the server announces. torch.hub does not notice an incomplete download."""
    with urlopen(Request(url, method="HEAD")) as answer:
        length = answer.headers.get("Content-Length")
    return int(length) if length else None


def from_hub(repository: str, file: str = HUB_FILE) -> Path:
    """A file in a repository on the Hugging Face hub, from its cache or downloaded."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # errors of huggingface_hub and of its HTTP library, which has changed before
        raise cannot_download(f"{HUB_PREFIX}{repository}", error) from None


def cannot_download(what: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{what}: cannot be downloaded ({reason}); if you have the file, pass its path")
