"""Devices of this machine by name."""


def resolve_device(name: str) -> str:
    """A device by name; `auto` is the GPU where there is one. ValueError where this machine has no such device."""
    import torch  # here, so that a configuration can be read without it

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in (*devices, *(["cuda"] if torch.cuda.is_available() else [])):
        raise ValueError(f"compute.device={name}: this machine has {', '.join(devices)}; or compute.device=auto")
    return name
