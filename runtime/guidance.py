"""Strength of classifier-free guidance over frames and scales.

constant:S              S everywhere
ucf101:A:B:C            A -> B over the frames at the first scale, then linearly to C inside
                        each frame (arXiv 2601.05966: 1, 5, 10)
falling:A:B             A -> B over all steps, time and scale together (there: 5, 3)
"""

from dataclasses import dataclass

from videoar.runtime.values import moderate

KINDS = {"constant": 1, "ucf101": 3, "falling": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSchedule:
    """`kind` and its strengths; a strength of 1 leaves the conditional logits as they are."""

    kind: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"guidance: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if len(self.values) != KINDS[self.kind]:
            expected = KINDS[self.kind]
            raise ValueError(f"guidance: {self.kind} takes {expected} values, got {self.values}")
        for value in self.values:
            moderate("guidance", value)

    @classmethod
    def parse(cls, guidance: "float | str | GuidanceSchedule") -> "GuidanceSchedule":
        """Read a number (constant) or a text as in this module's head.

        Raises:
            ValueError: neither, or a strength below 0 or beyond a million.
        """
        if isinstance(guidance, cls):
            return guidance
        if isinstance(guidance, str):
            kind, *values = guidance.split(":")
            if not values:
                kind, values = "constant", [kind]
        else:
            kind, values = "constant", [guidance]
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            forms = "a number, constant:S, ucf101:A:B:C or falling:A:B"
            raise ValueError(f"guidance: expected {forms}, got {guidance!r}") from None
        return cls(kind=kind, values=numbers)

    def strength(self, frame: int, scale: int, num_frames: int, num_scales: int) -> float:
        """Strength at latent frame `frame` and scale `scale` (both from 0).

        Frames beyond `num_frames` keep the strength of the last.
        """
        frame = min(frame, num_frames - 1)
        if self.kind == "constant":
            return self.values[0]
        if self.kind == "ucf101":
            first, last, top = self.values
            start = first + (last - first) * frame / max(1, num_frames - 1)
            return start + (top - start) * scale / max(1, num_scales - 1)
        first, last = self.values
        steps = num_frames * num_scales - 1
        return first + (last - first) * (frame * num_scales + scale) / max(1, steps)

    def of_frame(self, frame: int, num_frames: int, num_scales: int) -> list[float]:
        """The strengths over the scales of one latent frame."""
        return [self.strength(frame, k, num_frames, num_scales) for k in range(num_scales)]

    def is_one(self) -> bool:
        """Whether guidance never does anything, so that no unconditional row is needed."""
        return all(value == 1 for value in self.values)

    def __str__(self) -> str:
        return ":".join([self.kind, *(f"{value:g}" for value in self.values)])
