"""From a photo to the pixels a backbone reads, the same in training, prediction and export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from knownot.data.photo import open_photo
from knownot.data.square import centre_square, least_side

Three = tuple[float, float, float]


class Preprocessing(BaseModel):
    """Square centre crop of `crop` of the shorter side, resized to `image_size`, normalised.

    Attributes:
        image_size: Side of the square that the backbone sees, in pixels.
        crop: Share of the photo's shorter side that the crop keeps, in (0, 1].
        mean: Channel means (RGB, in [0, 1]) subtracted.
        std: Channel standard deviations divided by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: Annotated[int, Field(ge=8, le=2048)] = 224
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    mean: Three = (0.5, 0.5, 0.5)
    std: Three = (0.5, 0.5, 0.5)

    def read(self, path: Path) -> Tensor:
        """Open a photo file as a uint8 tensor (3, S, S); raises `DataError` if it cannot be read."""
        return self.from_pil(open_photo(path, at_least=least_side(self.image_size, self.crop)))

    def from_pil(self, image: Image.Image) -> Tensor:
        """An RGB Pillow image as a uint8 tensor (3, S, S)."""
        square = centre_square(image, self.image_size, self.crop)
        return torch.from_numpy(square).permute(2, 0, 1)

    def augment(self, path: Path) -> Tensor:
        """Open a photo for training: random crop of 35 to 100 % of the area, random mirror."""
        from torchvision.transforms import v2

        crop = v2.Compose(
            [
                v2.RandomResizedCrop(
                    self.image_size, scale=(0.35, 1.0), interpolation=v2.InterpolationMode.BICUBIC
                ),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )
        image: Tensor = crop(open_photo(path, at_least=self.image_size))
        return image
