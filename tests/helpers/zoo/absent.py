"""Denoiser classes without a sample, each with the reason, and samples that one check does not apply to."""

ABSENT = {
    "DreamLiteTransformer2DModel": "a part of DreamLiteUNetModel, no pipeline calls it",
    "DualTransformer2DModel": "a part of UNets for two texts, no pipeline calls it as its denoiser",
    "MiniMaxMusic3RVQDepthDecoder": "writes tokens one after another, there are no steps",
    "OmniGenTransformer2DModel": "its pipeline needs torchvision",
    "RFD4ProteinaTransformer": "no builder yet: its call takes some thirty tensors that describe molecules",
    "TransformerTemporalModel": "a part of video UNets, no pipeline calls it as its denoiser",
}

NO_NOISE = {"UNet2DConditionModel/xl-refiner"}  # goes on from given latents with a deterministic solver

# Flexible attention: compiled at the first call, which takes up to 20 seconds, and without a backward pass on a CPU.
NO_BACKWARD = {"AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel", "WanAnimate2Transformer3DModel"}
