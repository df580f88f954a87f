"""Find and download weights: from a file, a run folder, the hub, a URL, or a published name."""

import hashlib
import json
import os
import re
import sys
from base64 import b64encode
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from huggingface_hub import hf_hub_download
from tqdm import tqdm

from ..checkpoint import LAST
from ..credentials import restore_credentials, split_login, without_credentials
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
            - a name of `list_pretrained()`, or the authors' file name with or without .pth, such as
              maskrcnn_xcit_small_12_p16: the authors' file;
            - a name in timm, xcit_small_12_p16_224.fb_in1k, or timm/NAME for any other model: the copy on the hub;
            - hf-hub:OWNER/NAME: a repository that `push_to_hub` wrote;
            - a URL (http, https). Its user and password may be in it (https://USER:PASSWORD@HOST/…) or in ~/.netrc.

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


def read_hub_config(path: Path) -> dict[str, Any] | None:
    """The config.json that `save_pretrained` wrote beside a file of weights; None if there is none, or it is timm's."""
    beside = path.with_name(HUB_CONFIG)
    if path.name != HUB_FILE or not beside.is_file():
        return None
    try:
        config = json.loads(beside.read_text())
    except ValueError as error:
        raise InputError(f"{beside}: not a JSON file ({error})") from None
    return config if isinstance(config, dict) and "architecture" not in config else None


def cached_as(url: str) -> str:
    """A file name in the cache that is unique to the URL: many files are called model.safetensors.

    It does not depend on the user and password, so a URL that was saved without them finds the file, too.
    """
    name = Path(urlparse(url).path).name
    if not name:
        raise InputError(f"{url}: names no file")
    plain, _ = split_login(url)
    return f"{hashlib.sha256(plain.encode()).hexdigest()[:16]}/{name}"


def download(url: str, name: str) -> Path:
    """The file at a URL, from torch.hub's cache or downloaded. A hash in its name is checked."""
    path = Path(torch.hub.get_dir(), "checkpoints", name)
    if not path.is_file():
        complete = restore_credentials(url)
        if complete is None:
            raise InputError(
                f"{url}: was saved without its password or token; give the whole address again, "
                "or put user and password into ~/.netrc"
            )
        print(f"downloading {without_credentials(url)} to {path}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fetch(complete, path)
        except (OSError, HTTPException, ValueError) as error:
            raise cannot_download(url, error) from None
    return path


def fetch(url: str, path: Path) -> None:
    """Download a URL to a file. The file appears only when it is complete."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with urlopen(request_for(url)) as answer, aside.open("wb") as file:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            with tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
                while chunk := answer.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
        # An incomplete download ends like a complete one.
        size = aside.stat().st_size
        if total not in (None, size):
            raise OSError(f"broke off after {size} of {total} bytes")
        stated = STATED_HASH.search(path.name)
        if stated and not digest.hexdigest().startswith(stated[1]):
            raise OSError(f'invalid hash value (expected "{stated[1]}", got "{digest.hexdigest()}")')
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def request_for(url: str) -> Request:
    """The request for a URL, with its user and password if it has any. A redirect does not pass them on."""
    plain, login = split_login(url)
    request = Request(plain, headers={"User-Agent": "xcit"})
    if login:
        basic = b64encode(":".join(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {basic}")
    return request


def from_hub(repository: str, file: str = HUB_FILE) -> Path:
    """A file in a repository on the Hugging Face hub, from its cache or downloaded."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # errors of huggingface_hub and of its HTTP library, which has changed before
        raise cannot_download(f"{HUB_PREFIX}{repository}", error) from None


def cannot_download(what: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"{what}: cannot be downloaded ({reason}); if you have the file, pass its path")
