"""Tiny random pipelines of the denoiser classes of diffusers, each with a call that takes well below a second.

    sample = ZOO["FluxTransformer2DModel/img2img"]()
    latents = sample.run(seed=0)

No network, no files: random weights, in which every block has an effect, and embeddings in place of text encoders
wherever the pipeline takes them.
"""

from tests.helpers.zoo import (
    audio,
    flux,
    images,
    modular,
    more_video,
    others,
    rare,
    stable_diffusion,
    text_to_image,
    unets,
    video,
    wan,
)
from tests.helpers.zoo.base import ZOO, Sample

FAMILIES = (audio, flux, images, modular, more_video, others, rare, stable_diffusion, text_to_image, unets, video, wan)

__all__ = ["FAMILIES", "ZOO", "Sample"]
