"""Decides by its name whether a file is an image, a file of the operating system, or anything else."""

from functools import cache

from PIL import Image

# Formats that Pillow recognizes without being able to decode them by itself. EPS needs Ghostscript.
NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})

# Besides names that begin with a dot, as ._a.jpg, .DS_Store and .ipynb_checkpoints do: files and folders of Windows,
# macOS, NAS devices and Linux, in lower case.
SYSTEM_NAMES = frozenset(
    {
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "icon\r",
        "@eadir",
        "@tmp",
        "@recycle",
        "#recycle",
        "#snapshot",
        "lost+found",
    }
)


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of all image formats that can be decoded here, in lower case, with the dot."""
    Image.init()
    decoded = Image.OPEN.keys() - NOT_DECODED
    # MPO files are JPEGs with several images. Pillow opens them as JPEGs. NPY files are read by numpy.
    return frozenset(
        {".mpo", ".npy"} | {suffix for suffix, kind in Image.registered_extensions().items() if kind in decoded}
    )


def extension(name: str) -> str:
    """Return the extension of a file's name in lower case, with the dot; empty if it has none."""
    _, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot else ""


def is_system_name(name: str) -> bool:
    """Return whether a file or folder belongs to the operating system, or is hidden."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES
