"""Guidance that is approximated, by hand."""

import torch
from torch import Tensor


def approximated(c: Tensor, difference: Tensor, low: float, high: float, radius: int) -> Tensor:
    """c plus the difference, weighted around the centre of its shifted spectrum and outside, entry by entry."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference), dim=(-2, -1))
    height, width = difference.shape[-2:]
    for y in range(height):
        for x in range(width):
            near = (y - height // 2) ** 2 + (x - width // 2) ** 2 <= radius**2
            spectrum[..., y, x] *= low if near else high
    return c + torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real
