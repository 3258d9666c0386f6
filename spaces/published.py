"""Published rules of which several spaces have a preset each, under one name: `joint` combines the presets."""

FASTER_CACHE = "FasterCache"  # arXiv:2410.19355


def t_gates(steps: int) -> dict[str, int]:
    """Gate steps by preset name: 10 and 15 of 25, as T-GATE (arXiv:2404.02747) was published for SD and PixArt."""
    gates = (round(steps * part / 25) for part in (10, 15))
    return {f"T-GATE m={gate}": gate for gate in gates if 0 < gate < steps}
