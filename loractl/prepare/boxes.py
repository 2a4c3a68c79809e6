"""Boxes of pixels: what they cover, what they share."""

Box = tuple[int, int, int, int]  # left, top, right, bottom
Size = tuple[int, int]  # width and height in pixels


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: Box, other: Box) -> int:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def cuts(box: Box, other: Box) -> bool:
    """Whether a part of the other, and not all of it, lies in the box."""
    return 0 < overlap(box, other) < area(other)
