"""A third-party plugin from pip install to pip uninstall, in a virtual environment of its own."""

import json
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from loractl.formats import load_adapter, save_adapter
from loractl.tensors.adapter import Adapter
from loractl.tensors.lowrank import LowRank

EXAMPLE = Path(__file__).parents[1] / "docs/examples/loractl-average"
LINEAR = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.mid_block.resnets.0.conv1"
JOB = """\
method = "average"
name = "adapter"
adapters = ["a.safetensors", "b.safetensors"]
output.path = "d.safetensors"
"""
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


@dataclass(frozen=True)
class Machine:
    """A virtual environment that sees this one's packages, and a folder to work in."""

    python: Path
    folder: Path

    def call(self, *words: str | Path, code: int = 0) -> str:
        """Runs Python there; what it printed, stdout first."""
        done = subprocess.run([self.python, *words], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def loractl(self, *words: str | Path, code: int = 0) -> str:
        return self.call("-m", "loractl", *words, code=code)

    def install(self, project: Path) -> None:
        self.call(*PIP, "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", project)

    def uninstall(self, name: str) -> None:
        self.call(*PIP, "uninstall", "--quiet", "--yes", name)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    home = tmp_path_factory.mktemp("machine")
    venv.create(home / "venv", with_pip=True)
    (site,) = (home / "venv").glob("lib/python*/site-packages")
    parent = sysconfig.get_paths()["purelib"]
    # addsitedir, not a bare path: an editable loractl is itself a .pth file of the parent's.
    (site / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", encoding="utf-8")
    (home / "work").mkdir()
    return Machine(home / "venv/bin/python", home / "work")


@pytest.fixture
def average(machine: Machine) -> Iterator[Machine]:
    machine.install(EXAMPLE)
    yield machine
    machine.uninstall("loractl-average")


def adapter(seed: int, rank: int, paths: dict[str, tuple[int, ...]]) -> Adapter:
    """Random factors for modules given by the shape of their weights."""
    g = torch.Generator().manual_seed(seed)

    def module(out: int, *rest: int) -> LowRank:
        ones = (1,) * len(rest[1:])
        return LowRank(torch.randn(rank, *rest, generator=g), torch.randn(out, rank, *ones, generator=g), rank / 2)

    return Adapter({path: module(*shape) for path, shape in paths.items()})


def test_it_averages_from_the_command_line_and_from_a_job(average: Machine) -> None:
    a = adapter(1, 4, {LINEAR: (8, 6), CONV: (8, 6, 3, 3)})
    b = adapter(2, 2, {LINEAR: (8, 6)})
    for name, each in {"a": a, "b": b}.items():
        save_adapter(average.folder / f"{name}.safetensors", each, "kohya", dtype=torch.float32, name=name)

    average.loractl("average", "a.safetensors", "b.safetensors", "--out", "c.safetensors")
    paths = [LINEAR, CONV]
    mean = load_adapter(average.folder / "c.safetensors", paths).modules
    torch.testing.assert_close(mean[LINEAR].delta(), (a.modules[LINEAR].delta() + b.modules[LINEAR].delta()) / 2)
    torch.testing.assert_close(mean[CONV].delta(), a.modules[CONV].delta() / 2)

    (average.folder / "job.toml").write_text(JOB, encoding="utf-8")
    average.loractl("run", "job.toml")
    assert (average.folder / "d.safetensors").read_bytes() == (average.folder / "c.safetensors").read_bytes()
    average.loractl("run", "d.job.toml", code=3)
    average.loractl("run", "d.job.toml", "--overwrite")
    assert (average.folder / "d.safetensors").read_bytes() == (average.folder / "c.safetensors").read_bytes()


def test_its_errors_are_those_of_a_built_in_method(average: Machine) -> None:
    save_adapter(average.folder / "small.safetensors", adapter(1, 2, {LINEAR: (4, 4)}), "kohya", name="small")
    save_adapter(average.folder / "large.safetensors", adapter(1, 2, {LINEAR: (8, 8)}), "kohya", name="large")
    assert "for different models" in average.loractl("average", "small.safetensors", "large.safetensors", code=4)
    told = average.loractl("average", "small.safetensors", "none.safetensors", code=2)
    assert told == f"error: ADAPTERS: there is no file or folder {average.folder / 'none.safetensors'}\n"


def test_it_comes_and_goes(machine: Machine) -> None:
    def methods() -> dict[str, str]:
        listed = json.loads(machine.loractl("methods", "--json"))["methods"]
        return {each["name"]: each["distribution"] for each in listed}

    before = methods()
    machine.install(EXAMPLE)
    assert methods() == {**before, "average": "loractl-average 0.1.0"}
    machine.uninstall("loractl-average")
    assert methods() == before
    assert "No such command 'average'" in machine.loractl("average", "a", "b", code=2)


BROKEN = {
    "clash": (
        "from loractl_infer import register_methods",
        'two plugins offer the method "infer": loractl-broken 3.2 and loractl 0.1.0',
    ),
    "import": ("import no_such_module", "the plugin loractl-broken 3.2 can't be loaded: ModuleNotFoundError"),
    "misspelt": (
        "from loractl.hookspecs import hookimpl\n@hookimpl\ndef register_method(): return []",
        "the plugin loractl-broken 3.2 is faulty: unknown hook 'register_method'",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_named_and_can_be_left_out(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    code, says = BROKEN[fault]
    project = (
        (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8").replace("average", "broken").replace("0.1.0", "3.2")
    )
    (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
    (tmp_path / "src/loractl_broken").mkdir(parents=True)
    (tmp_path / "src/loractl_broken/__init__.py").write_text(code, encoding="utf-8")
    machine.install(tmp_path)
    try:
        assert f"error: {says}" in machine.loractl("methods", code=6)
        monkeypatch.setenv("LORACTL_PLUGINS", "infer")
        assert "infer" in machine.loractl("methods")
    finally:
        machine.uninstall("loractl-broken")
