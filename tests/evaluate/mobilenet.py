"""MobileNetV2 (Sandler et al. 2018) with torchvision's names of its parts, so that torchvision's weights fit it."""

from torch import Tensor, nn

# expansion, channels, repeats, stride: table 2 of the paper
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _convolution(n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(n_out), nn.ReLU6())


class Block(nn.Module):
    """An inverted residual: expand, filter each channel, project; added to its input where the shapes allow."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = n_in * expansion
        expand = [_convolution(n_in, wide)] if expansion > 1 else []
        project = [nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
        self.conv = nn.Sequential(*expand, _convolution(wide, wide, 3, stride, wide), *project)
        self.adds = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 32, 3, 2)]
        n_in = 32
        for expansion, n_out, repeats, stride in STAGES:
            for i in range(repeats):
                layers.append(Block(n_in, n_out, expansion, 1 if i else stride))
                n_in = n_out
        self.features = nn.Sequential(*layers, _convolution(n_in, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, pictures: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(pictures).mean((2, 3)))
        return scores


def mobilenet_v2() -> MobileNetV2:
    return MobileNetV2()
