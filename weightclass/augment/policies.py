"""Published policies as data: which operations, at which strengths, how often."""

from __future__ import annotations

import torch

from weightclass.augment.space import Strengths


def _strengths(
    bins: int, shear: float, right: float, down: float, turn: float, blend: float, bits: tuple[int, int]
) -> Strengths:
    """float32 ranges from 0 to each of these; posterize keeps bits[0] down to bits[0] - bits[1] bits."""
    reach = {"ShearX": shear, "ShearY": shear, "TranslateX": right, "TranslateY": down, "Rotate": turn}
    reach |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), blend)
    found: Strengths = {name: (torch.linspace(0.0, most, bins).tolist(), True) for name, most in reach.items()}
    kept = bits[0] - (torch.arange(bins) / ((bins - 1) / bits[1])).round()
    found |= {"Posterize": (kept.tolist(), False), "Solarize": (torch.linspace(255.0, 0.0, bins).tolist(), False)}
    return found | {"AutoContrast": ([0.0], False), "Equalize": ([0.0], False)}


def auto_strengths(bins: int, height: int, width: int) -> Strengths:
    """AutoAugment's: Cubuk et al. 2019, arXiv 1805.09501."""
    return _strengths(bins, 0.3, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0, 0.9, (8, 4))


def rand_strengths(bins: int, height: int, width: int) -> Strengths:
    """RandAugment's: Cubuk et al. 2020, arXiv 1909.13719."""
    return {"Identity": ([0.0], False)} | auto_strengths(bins, height, width)


def wide_strengths(bins: int) -> Strengths:
    """TrivialAugment's wide space: Müller & Hutter 2021, arXiv 2103.10158."""
    return {"Identity": ([0.0], False)} | _strengths(bins, 0.99, 32.0, 32.0, 135.0, 0.99, (8, 6))


def mix_strengths(height: int, width: int) -> Strengths:
    """AugMix's ten steps, with all operations: Hendrycks et al. 2020, arXiv 1912.02781."""
    return _strengths(10, 0.3, width / 3.0, height / 3.0, 30.0, 0.9, (4, 4))


def _sub_policies(text: str) -> list[list[tuple[str, float, int]]]:
    lines = [line.split() for line in text.strip().splitlines()]
    return [[(w[i], float(w[i + 1]), int(w[i + 2])) for i in (0, 3)] for w in lines]


# Each line a sub-policy: two operations, each with its chance and the step of its magnitude (0 where it has none).
# Source: Cubuk et al. 2019, arXiv 1805.09501, tables 7 (CIFAR-10), 8 (SVHN) and 9 (ImageNet).
AUTOAUGMENT = {
    "cifar10": _sub_policies(
        """
        Invert       0.1 0  Contrast     0.2 6
        Rotate       0.7 2  TranslateX   0.3 9
        Sharpness    0.8 1  Sharpness    0.9 3
        ShearY       0.5 8  TranslateY   0.7 9
        AutoContrast 0.5 0  Equalize     0.9 0
        ShearY       0.2 7  Posterize    0.3 7
        Color        0.4 3  Brightness   0.6 7
        Sharpness    0.3 9  Brightness   0.7 9
        Equalize     0.6 0  Equalize     0.5 0
        Contrast     0.6 7  Sharpness    0.6 5
        Color        0.7 7  TranslateX   0.5 8
        Equalize     0.3 0  AutoContrast 0.4 0
        TranslateY   0.4 3  Sharpness    0.2 6
        Brightness   0.9 6  Color        0.2 8
        Solarize     0.5 2  Invert       0.0 0
        Equalize     0.2 0  AutoContrast 0.6 0
        Equalize     0.2 0  Equalize     0.6 0
        Color        0.9 9  Equalize     0.6 0
        AutoContrast 0.8 0  Solarize     0.2 8
        Brightness   0.1 3  Color        0.7 0
        Solarize     0.4 5  AutoContrast 0.9 0
        TranslateY   0.9 9  TranslateY   0.7 9
        AutoContrast 0.9 0  Solarize     0.8 3
        Equalize     0.8 0  Invert       0.1 0
        TranslateY   0.7 9  AutoContrast 0.9 0
        """
    ),
    "svhn": _sub_policies(
        """
        ShearX       0.9 4  Invert       0.2 0
        ShearY       0.9 8  Invert       0.7 0
        Equalize     0.6 0  Solarize     0.6 6
        Invert       0.9 0  Equalize     0.6 0
        Equalize     0.6 0  Rotate       0.9 3
        ShearX       0.9 4  AutoContrast 0.8 0
        ShearY       0.9 8  Invert       0.4 0
        ShearY       0.9 5  Solarize     0.2 6
        Invert       0.9 0  AutoContrast 0.8 0
        Equalize     0.6 0  Rotate       0.9 3
        ShearX       0.9 4  Solarize     0.3 3
        ShearY       0.8 8  Invert       0.7 0
        Equalize     0.9 0  TranslateY   0.6 6
        Invert       0.9 0  Equalize     0.6 0
        Contrast     0.3 3  Rotate       0.8 4
        Invert       0.8 0  TranslateY   0.0 2
        ShearY       0.7 6  Solarize     0.4 8
        Invert       0.6 0  Rotate       0.8 4
        ShearY       0.3 7  TranslateX   0.9 3
        ShearX       0.1 6  Invert       0.6 0
        Solarize     0.7 2  TranslateY   0.6 7
        ShearY       0.8 4  Invert       0.8 0
        ShearX       0.7 9  TranslateY   0.8 3
        ShearY       0.8 5  AutoContrast 0.7 0
        ShearX       0.7 2  Invert       0.1 0
        """
    ),
    "imagenet": _sub_policies(
        """
        Posterize    0.4 8  Rotate       0.6 9
        Solarize     0.6 5  AutoContrast 0.6 0
        Equalize     0.8 0  Equalize     0.6 0
        Posterize    0.6 7  Posterize    0.6 6
        Equalize     0.4 0  Solarize     0.2 4
        Equalize     0.4 0  Rotate       0.8 8
        Solarize     0.6 3  Equalize     0.6 0
        Posterize    0.8 5  Equalize     1.0 0
        Rotate       0.2 3  Solarize     0.6 8
        Equalize     0.6 0  Posterize    0.4 6
        Rotate       0.8 8  Color        0.4 0
        Rotate       0.4 9  Equalize     0.6 0
        Equalize     0.0 0  Equalize     0.8 0
        Invert       0.6 0  Equalize     1.0 0
        Color        0.6 4  Contrast     1.0 8
        Rotate       0.8 8  Color        1.0 2
        Color        0.8 8  Solarize     0.8 7
        Sharpness    0.4 7  Invert       0.6 0
        ShearX       0.6 5  Equalize     1.0 0
        Color        0.4 0  Equalize     0.6 0
        Equalize     0.4 0  Solarize     0.2 4
        Solarize     0.6 5  AutoContrast 0.6 0
        Invert       0.6 0  Equalize     1.0 0
        Color        0.6 4  Contrast     1.0 8
        Equalize     0.8 0  Equalize     0.6 0
        """
    ),
}
