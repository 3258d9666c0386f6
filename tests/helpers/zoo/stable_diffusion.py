"""UNet2DConditionModel: Stable Diffusion, SDXL, their edits, ControlNet, adapters and samplers."""

from typing import Any

import diffusers

from tests.helpers.zoo import parts
from tests.helpers.zoo.base import Sample, assemble, entry, lively, mask, noise, picture

SIZE = {"height": 16, "width": 16}
TEXT = {"prompt_embeds": noise(1, 4, 16), "negative_prompt_embeds": noise(1, 4, 16, seed=8)}
POOLED = {"pooled_prompt_embeds": noise(1, 16, seed=9), "negative_pooled_prompt_embeds": noise(1, 16, seed=10)}


def blocks() -> dict[str, Any]:
    """Arguments that UNets and ControlNets share: two resolutions, attention at the finer one."""
    return {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }


UP = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "sample_size": 8}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "use_linear_projection": True,
}


def unet(**config: Any) -> Any:
    return lively(diffusers.UNet2DConditionModel(**blocks() | UP | config))


def scheduler(name: str, **config: Any) -> Any:
    usual = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if name == "DDIMScheduler":
        usual |= {"clip_sample": False, "steps_offset": 1}
    return getattr(diffusers, name)(**usual | config)


def sd(
    kind: str = "StableDiffusionPipeline",
    sampler: str = "DDIMScheduler",
    size: bool = True,
    steps: int = 4,
    parts_: dict[str, Any] | None = None,
    **call: Any,
) -> Sample:
    """A Stable Diffusion 1.5 pipeline and its call."""
    given = {"unet": unet(), "vae": parts.vae(), "scheduler": scheduler(sampler), "requires_safety_checker": False}
    pipe = assemble(getattr(diffusers, kind), **given | (parts_ or {}))
    usual = TEXT | {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent"}
    return Sample(pipe, usual | (SIZE if size else {}) | call, denoisers=("unet",))


def xl(kind: str = "StableDiffusionXLPipeline", parts_: dict[str, Any] | None = None, **call: Any) -> Sample:
    """An SDXL pipeline and its call; the text encoders are only asked for their widths."""
    config = {"unet": unet(**XL), "vae": parts.vae(), "scheduler": scheduler("EulerDiscreteScheduler")}
    text = {"text_encoder_2": parts.clip_text(projected=True), "add_watermarker": False}
    pipe = assemble(getattr(diffusers, kind), **config | text | (parts_ or {}))
    usual = TEXT | POOLED | SIZE | {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    return Sample(pipe, usual | call, denoisers=("unet",))


@entry("UNet2DConditionModel")
def stable_diffusion() -> Sample:
    return sd()


@entry("UNet2DConditionModel/prompt")
def prompt() -> Sample:
    """Words, which the text encoder reads at every call."""
    sample = sd(parts_={"text_encoder": parts.clip_text(), "tokenizer": parts.tokenizer()})
    for name in TEXT:
        sample.call.pop(name)
    sample.call |= {"prompt": "a red fox", "negative_prompt": "snow"}
    return sample


@entry("UNet2DConditionModel/heun")
def heun() -> Sample:
    return sd(sampler="HeunDiscreteScheduler", steps=3)


@entry("UNet2DConditionModel/dpm2-ancestral")
def dpm2_ancestral() -> Sample:
    return sd(sampler="KDPM2AncestralDiscreteScheduler", steps=3)


@entry("UNet2DConditionModel/euler-ancestral")
def euler_ancestral() -> Sample:
    return sd(sampler="EulerAncestralDiscreteScheduler")


@entry("UNet2DConditionModel/pndm")
def pndm() -> Sample:
    return sd(sampler="PNDMScheduler", parts_={"scheduler": scheduler("PNDMScheduler", skip_prk_steps=True)})


@entry("UNet2DConditionModel/dpm-sde")
def dpm_sde() -> Sample:
    return sd(parts_={"scheduler": scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")})


@entry("UNet2DConditionModel/lora")
def lora() -> Sample:
    """Trained weights beside the attention's own, at a strength of 0.7."""
    from peft import LoraConfig

    sample = sd()
    sample.pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]), "style")
    lively(sample.pipe.unet)
    sample.pipe.unet.set_adapters(["style"], [0.7])
    return sample


@entry("UNet2DConditionModel/tcd")
def tcd() -> Sample:
    return sd(sampler="TCDScheduler", eta=0.3)


@entry("UNet2DConditionModel/no-guidance")
def no_guidance() -> Sample:
    return sd(guidance_scale=1.0)


@entry("UNet2DConditionModel/two-prompts")
def two_prompts() -> Sample:
    text = {"prompt_embeds": noise(2, 4, 16), "negative_prompt_embeds": noise(2, 4, 16, seed=8)}
    return sd(**text)


@entry("UNet2DConditionModel/lcm")
def lcm() -> Sample:
    text = {"prompt_embeds": noise(1, 4, 16), "original_inference_steps": 50}
    made = {"unet": unet(time_cond_proj_dim=8)}
    sample = sd("LatentConsistencyModelPipeline", "LCMScheduler", parts_=made, **text)
    sample.call.pop("negative_prompt_embeds")
    return sample


@entry("UNet2DConditionModel/img2img")
def img2img() -> Sample:
    return sd("StableDiffusionImg2ImgPipeline", size=False, image=picture(), strength=0.75)


@entry("UNet2DConditionModel/inpaint")
def inpaint() -> Sample:
    made = {"unet": unet(in_channels=9)}
    return sd("StableDiffusionInpaintPipeline", parts_=made, image=picture(), mask_image=mask())


@entry("UNet2DConditionModel/inpaint-strength")
def inpaint_strength() -> Sample:
    """A model without mask channels: outside of the mask the pipeline puts the picture back at every step."""
    return sd("StableDiffusionInpaintPipeline", image=picture(), mask_image=mask(), strength=0.75)


@entry("UNet2DConditionModel/instruct-pix2pix")
def instruct_pix2pix() -> Sample:
    """Three guidance branches in one batch."""
    made = {"unet": unet(in_channels=8)}
    return sd("StableDiffusionInstructPix2PixPipeline", parts_=made, size=False, image=picture())


@entry("UNet2DConditionModel/perturbed-attention")
def perturbed_attention() -> Sample:
    return sd("StableDiffusionPAGPipeline", pag_scale=2.0)


@entry("UNet2DConditionModel/controlnet")
def controlnet() -> Sample:
    net = lively(diffusers.ControlNetModel(**blocks(), conditioning_embedding_out_channels=(4, 8)))
    return sd("StableDiffusionControlNetPipeline", parts_={"controlnet": net}, image=picture())


@entry("UNet2DConditionModel/ip-adapter")
def ip_adapter() -> Sample:
    sample = sd()
    width = sample.pipe.unet.config.cross_attention_dim
    weights: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
    weights["image_proj"] = {
        "proj.weight": noise(4 * width, width) / 4,
        "proj.bias": noise(4 * width) / 4,
        "norm.weight": noise(width).abs(),
        "norm.bias": noise(width) / 4,
    }
    number = 1
    for name in sample.pipe.unet.attn_processors:
        if name.endswith("attn2.processor"):
            inner = sample.pipe.unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            weights["ip_adapter"][f"{number}.to_k_ip.weight"] = noise(inner, width, seed=number) / 4
            weights["ip_adapter"][f"{number}.to_v_ip.weight"] = noise(inner, width, seed=number + 1) / 4
            number += 2
    sample.pipe.unet._load_ip_adapter_weights([weights])
    sample.call["ip_adapter_image_embeds"] = [noise(2, 1, width, seed=5)]
    return sample


@entry("UNet2DConditionModel/xl")
def stable_diffusion_xl() -> Sample:
    return xl()


@entry("UNet2DConditionModel/xl-base")
def xl_base() -> Sample:
    """The first part of a run that a refiner goes on with."""
    return xl(num_inference_steps=6, denoising_end=0.7)


@entry("UNet2DConditionModel/xl-refiner")
def xl_refiner() -> Sample:
    config = XL | {"projection_class_embeddings_input_dim": 5 * 8 + 16}
    given = {"unet": unet(**config), "requires_aesthetics_score": True}
    latents = noise(1, 4, 8, 8, seed=11)
    sample = xl("StableDiffusionXLImg2ImgPipeline", given, image=latents, denoising_start=0.5, num_inference_steps=6)
    return without_size(sample)


@entry("UNet2DConditionModel/xl-img2img")
def xl_img2img() -> Sample:
    return without_size(xl("StableDiffusionXLImg2ImgPipeline", image=picture(), strength=0.75))


@entry("UNet2DConditionModel/xl-inpaint")
def xl_inpaint() -> Sample:
    return xl("StableDiffusionXLInpaintPipeline", image=picture(), mask_image=mask(), strength=0.9)


@entry("UNet2DConditionModel/xl-controlnet")
def xl_controlnet() -> Sample:
    net = diffusers.ControlNetModel(**blocks() | XL, conditioning_embedding_out_channels=(4, 8))
    return xl("StableDiffusionXLControlNetPipeline", {"controlnet": lively(net)}, image=picture())


@entry("UNet2DConditionModel/xl-perturbed-attention")
def xl_perturbed_attention() -> Sample:
    return xl("StableDiffusionXLPAGPipeline", pag_scale=2.0)


def without_size(sample: Sample) -> Sample:
    """Pipelines that take their size from the picture."""
    for name in SIZE:
        sample.call.pop(name)
    return sample
