"""A folder of images, one sub-folder for each class."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput
from . import target as targets
from .dataset import Data

if TYPE_CHECKING:
    from PIL.Image import Image


def load(path: Path, image_size: int) -> Data:
    """Read every image under `path`; all are resized to one size whose longer side is at most `image_size`.

    The common size has the median proportions. Images are grey if all files are, else RGB. Raises `BadInput`
    when there are not two classes, a class is empty or a file is no image.
    """
    from PIL import Image, UnidentifiedImageError

    if image_size < 1:
        raise BadInput(f"image size {image_size} is too small: give the longer side in pixels, such as 32")
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    if len(folders) < 2:
        found = f"only '{folders[0].name}'" if folders else "none"
        raise BadInput(f"{path} must hold one sub-folder of images for each class, at least two: it holds {found}")
    loose = [entry.name for entry in entries if not entry.is_dir()]
    warnings = [f"{len(loose)} files beside the class folders were left out: {loose[0]}"] if loose else []

    images, labels = [], []
    for label, folder in enumerate(folders):
        files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
        if not files:
            raise BadInput(f"class folder {folder} is empty: put its images there or remove it")
        for file in files:
            if file.is_dir():
                raise BadInput(f"{file} is a folder inside a class folder: give a folder of class folders as data")
            try:
                with Image.open(file) as image:
                    image.load()
                    images.append(_eight_bit(image))
            except (UnidentifiedImageError, OSError, SyntaxError):  # Pillow's broken PNGs are SyntaxErrors
                raise BadInput(f"{file} is not an image that can be read: remove or replace it") from None
            labels.append(label)
    if len(images) < targets.MIN_ROWS:
        raise BadInput(f"{path} holds only {len(images)} images: at least {targets.MIN_ROWS} are needed")

    sizes = np.array([image.size for image in images])
    typical = np.median(sizes, axis=0)
    shrink = min(1.0, image_size / typical.max())
    width, height = (max(1, round(side * shrink)) for side in typical)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    pixels = np.stack([np.asarray(image.convert(mode).resize((width, height))) for image in images])
    pixels = pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)
    classes = tuple(folder.name for folder in folders)
    resized = "" if (sizes == (width, height)).all() else " after resizing"
    return Data(
        name=path.resolve().name,
        task="classification",
        kind="image",
        description=(
            f"{len(images):,} {'grey' if mode == 'L' else 'RGB'} images of {width}x{height} pixels{resized}; "
            f"classification into {len(classes)} classes, one a folder"
        ),
        x=np.ascontiguousarray(pixels),
        y=np.array(labels, np.int64),
        classes=classes,
        warnings=[*warnings, *targets.rare(classes, np.bincount(labels))],
        image_shape=(pixels.shape[1], height, width),
    )


def _eight_bit(image: "Image") -> "Image":
    """Grey or RGB with 8 bits a value; 16-bit greys keep their upper byte (Pillow's own conversion clips them)."""
    from PIL.Image import fromarray

    if image.mode.startswith("I"):
        return fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
