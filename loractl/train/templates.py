"""Sentences around a learned token, so that it learns the thing and not one wording of it.

As in textual inversion (Gal et al. 2022, appendix E), 27 for an object and 19 for a style. "{}" stands for the token.
"""

OBJECT = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of one {}",
    "a photo of my {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a photo of a cool {}",
    "a photo of a nice {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a photo of the weird {}",
    "a good photo of a {}",
    "a good photo of the {}",
    "a bright photo of a {}",
    "a bright photo of the {}",
    "a dark photo of a {}",
    "a dark photo of the {}",
    "a cropped photo of a {}",
    "a cropped photo of the {}",
    "a close-up photo of a {}",
    "a close-up photo of the {}",
    "a blurry photo of a {}",
    "a low resolution photo of the {}",
    "a rendering of a {}",
    "a rendering of the {}",
    "a picture of a {}",
    "a depiction of a {}",
)

STYLE = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a picture in the style of {}",
    "a depiction in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a bright painting in the style of {}",
    "a cool painting in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a large painting in the style of {}",
    "a weird painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "one painting in the style of {}",
    "my painting in the style of {}",
)


def fill(template: str, token: str) -> str:
    """The sentence with the token in it."""
    return template.replace("{}", token)
