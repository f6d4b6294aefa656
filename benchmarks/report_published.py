"""Table 3 of arXiv 2601.05966: what was published, as it was published."""

from dataclasses import dataclass

UNSTATED = "published; hardware not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A line of the table.

    Attributes:
        model: as it is called there.
        parameters: in words.
        gfvd: of UCF-101, 17 x 128 x 128.
        steps: of a clip.
        seconds: a clip; what is inside of the timer is not stated.
        hardware: that it ran on.
    """

    model: str
    parameters: str
    gfvd: str
    steps: int
    seconds: float
    hardware: str = UNSTATED


PUBLISHED = tuple(
    Published(model=model, parameters=size, gfvd=gfvd, steps=steps, seconds=seconds, **where)
    for model, size, gfvd, steps, seconds, where in (
        ("OmniTokenizer", "650 M", "191", 5120, 336.70, {}),
        ("PAR-1x", "792 M", "94.1", 1280, 43.30, {}),
        ("PAR-4x", "792 M", "99.5", 323, 11.27, {}),
        ("PAR-16x", "792 M", "103.4", 95, 3.44, {}),
        ("NAR-L", "369 M", "96.2", 34, 1.09, {"hardware": "published; A100"}),
        ("NAR-LP", "694 M", "71.1", 34, 1.30, {"hardware": "published; A100"}),
        ("VideoAR-L", "926 M", "90.3", 30, 0.86, {}),
        ("VideoAR-XL", "2.0 B", "88.6", 30, 1.12, {}),
    )
)
