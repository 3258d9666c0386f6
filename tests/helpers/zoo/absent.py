"""Denoiser classes without a sample, each with the reason, and samples that one check does not apply to."""

ABSENT = {
    "Cosmos3OmniTransformer": "no builder yet: text, video, sound and actions in one packed sequence",
    "DreamLiteTransformer2DModel": "a part of DreamLiteUNetModel, no pipeline calls it",
    "DualTransformer2DModel": "a part of UNets for two texts, no pipeline calls it as its denoiser",
    "Flux3Transformer2DModel": "no builder yet: modular pipelines only",
    "Ideogram4Transformer2DModel": "no builder yet: the pipeline calls the layers of its text encoder one by one",
    "JoyImageEditPlusTransformer3DModel": "no builder yet: the pipeline reads pictures with its text encoder",
    "Kandinsky6SRTransformer3DModel": "no builder yet: tiles of a video",
    "MiniMaxH3Transformer3DModel": "no builder yet: modular pipelines only",
    "MiniMaxMusic3RVQDepthDecoder": "writes tokens one after another, there are no steps",
    "MiniMaxMusic3Transformer1DModel": "no builder yet: modular pipelines only, behind a language model",
    "OmniGenTransformer2DModel": "its pipeline needs torchvision",
    "RFD4ProteinaTransformer": "no builder yet: proteins, two schedulers",
    "SanaWMLTX2RefinerTransformer3DModel": "no builder yet: refines what SanaWMTransformer3DModel gives",
    "TransformerTemporalModel": "a part of video UNets, no pipeline calls it as its denoiser",
    "WanAnimate2Transformer3DModel": "no builder yet: modular pipelines only",
}

NO_NOISE = {"UNet2DConditionModel/xl-refiner"}  # goes on from given latents with a deterministic solver
NO_BACKWARD = {"AnyFlowFARTransformer3DModel"}  # flexible attention has no backward pass on a CPU
