"""Image files: which ones a folder holds, and one of them decoded or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Final, Literal

from PIL import Image, UnidentifiedImageError

from engines.errors import InputError
from engines.preprocess import BadImage

__all__ = [
    *("SUFFIXES", "VALIDATION_FOLDERS", "ClassOrder"),
    *("class_folders", "decode_image", "image_files", "is_number", "read_image"),
]

ClassOrder = Literal["lexical", "numeric"]

# torchvision's list, so that both see the same files
SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})

VALIDATION_FOLDERS: Final = ("val", "valid", "validation", "test")

# what Pillow's decoders raise on damaged files, besides OSError
_DECODER_ERRORS: Final = (
    *(SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError, RuntimeError),
    *(OSError, struct.error, zlib.error, Image.DecompressionBombError),
)


def class_folders(root: Path, order: ClassOrder = "lexical") -> tuple[str, ...]:
    """The names of the class folders in `root`, hidden ones left out.

    Args:
        root: a folder with one folder per class.
        order: "lexical" is torchvision's ("10" before "2"); "numeric" sorts names that are integers by value.

    Returns:
        At least one name.

    Raises:
        InputError: no such folder, no class folders in it, or a name that is no integer in numeric order.
    """
    if not root.is_dir():
        known = "is a file, not a folder" if root.exists() else "does not exist"
        raise InputError(f"The data folder {root} {known}.", "pass a folder that holds one folder per class.")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(f"The data folder {root} holds no class folders.", "put the images in one folder per class.")
    if order == "lexical":
        return tuple(names)
    if others := [name for name in names if not is_number(name)]:
        raise InputError(f"The class folder {root / others[0]} isn't named by a number.", "use --class-order lexical.")
    return tuple(sorted(names, key=lambda name: (int(name), name)))


def is_number(name: str) -> bool:
    """Whether a class name is an integer, such as "7", "007" or "-90"."""
    return name.removeprefix("-").isdecimal()


def image_files(root: Path, class_name: str) -> list[str]:
    """The images of one class, nested ones too.

    Args:
        root: the folder of all classes.
        class_name: one folder in it; it may be absent.

    Returns:
        File names relative to `root`, with forward slashes, sorted: the order on disk doesn't matter.
    """
    found = []
    for folder, folders, files in os.walk(root / class_name, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(folder).relative_to(root)
        images = [name for name in files if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
        found += [(here / name).as_posix() for name in images]
    return sorted(found)


def read_image(path: Path) -> Image.Image:
    """Decode one file as it is stored, completely.

    Args:
        path: the file.

    Returns:
        The first picture in it, its data loaded.

    Raises:
        BadImage: damaged, truncated, not an image, or with more pixels than Pillow deems safe.
        InputError: the file could not be read at all, which no other file would cure.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} could not be read: {error.strerror}.", "check that it is there and readable."
        ) from error
    return decode_image(content)


def decode_image(content: bytes) -> Image.Image:
    """Decode the content of an image file as it is stored, completely.

    Args:
        content: all of the file.

    Returns:
        The first picture in it, its data loaded.

    Raises:
        BadImage: damaged, truncated, not an image, or with more pixels than Pillow deems safe.
    """
    try:
        image = Image.open(io.BytesIO(content))
        if Image.MAX_IMAGE_PIXELS is None or image.width * image.height <= Image.MAX_IMAGE_PIXELS:
            image.load()
            return image
        reason = f"it has {image.width}x{image.height} pixels, which may be a decompression bomb"
    except UnidentifiedImageError:
        reason = "it is not an image that Pillow knows"
    except Image.DecompressionBombError as error:
        reason = f"it may be a decompression bomb ({error})"
    except _DECODER_ERRORS as error:
        reason = f"it could not be decoded ({str(error) or type(error).__name__})"
    raise BadImage(reason, "replace or remove it.")
