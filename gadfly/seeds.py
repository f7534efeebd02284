"""Seeds for the parts of one request, spaced so that requests with neighbouring seeds do not share any."""

_ROUND_STRIDE = 1_000_003
_SAMPLE_STRIDE = 7_919


def seed_of_round(seed: int, round: int) -> int:
    """The seed of a round of critique and rewrite, so that equal answers get new critiques; round 0 keeps `seed`."""
    return seed + _ROUND_STRIDE * round


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed of one of several independent samples; sample 0 keeps `seed`."""
    return seed + _SAMPLE_STRIDE * sample
