"""The merged file has the sum of its parents' updates, says where it comes from, and obeys its job."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loractl_merge.command import merge
from loractl_merge.spec import MergeSpec

from loractl.errors import DeviceError, JobError, MismatchError, NumericsError
from loractl.formats import load_adapter, save_adapter
from loractl.formats.natives import Native
from loractl.formats.safefile import read_header, read_tensors
from loractl.tensors.adapter import Adapter, content_hash
from loractl.tensors.lowrank import LowRank
from loractl.tensors.truncate import Size
from tests.methods.lab_job import JOBS, run_job
from tests.tensors.updates import delta, random_update

ATTENTION = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VALUE = "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_v"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
SHAPES = {ATTENTION: (8, 8), VALUE: (8, 12), CONV: (6, 8, 3, 3), TEXT: (12, 12)}


def parent(path: Path, form: Any, seed: int, rank: int, without: str, dtype: torch.dtype = torch.float32) -> Adapter:
    """A file of three of the modules, alpha unlike the rank."""
    modules = {
        name: random_update(shape, rank, 3.0, seed + i)
        for i, (name, shape) in enumerate(SHAPES.items())
        if name != without
    }
    save_adapter(path, Adapter(modules, {"ss_base_model_version": "sd_v1"}), form, dtype=dtype, name=path.stem)
    return load_adapter(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Other ranks, other modules, other formats."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    parent(one, "kohya", 0, 4, without=VALUE)
    parent(two, "diffusers", 10, 3, without=TEXT)
    return one, two


def run(job: MergeSpec) -> dict[str, LowRank]:
    """The modules of the file that the job writes."""
    from loractl_merge import start

    file = next(iter(start(job, lambda _: None).files.values()))
    return dict(load_adapter(file).modules)


def error(result: dict[str, LowRank], *terms: tuple[float, Path]) -> float:
    """‖result − Σ wᵢ·ΔWᵢ‖ relative to the sum, over all modules."""
    adapters = [(weight, load_adapter(path).modules) for weight, path in terms]
    wrong = size = 0.0
    for name, shape in SHAPES.items():
        right = sum(weight * delta(modules.get(name), shape) for weight, modules in adapters)
        assert isinstance(right, torch.Tensor)
        wrong += float((delta(result.get(name), shape) - right).square().sum())
        size += float(right.square().sum())
    return float((wrong / size) ** 0.5)


def test_weights_of_any_sign_are_exact(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = files
    out = tmp_path / "out" / "m.safetensors"
    result = run(merge([one, two, one], weights="0.7,0.3,-0.2", out=out))
    assert error(result, (0.7, one), (0.3, two), (-0.2, one)) < 1e-5
    assert {name: low.rank for name, low in result.items()} == {ATTENTION: 11, VALUE: 3, CONV: 11, TEXT: 8}


@pytest.mark.cuda
@pytest.mark.parametrize("method", ["sum", "slerp", "karcher", "stock", "ties", "dare", "prune", "breadcrumbs"])
def test_a_gpu_merges_as_the_cpu_does(files: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    results = [
        run(merge(list(files), method=method, rank=5, device=device, out=tmp_path / f"{device}.safetensors"))
        for device in ("cpu", "cuda")
    ]
    assert results[0].keys() == results[1].keys()
    for name, low in results[0].items():
        assert (delta(low) - delta(results[1][name])).norm() < 1e-4 * delta(low).norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error_not_the_cpu(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no CUDA device"):
        run(merge(list(files), device="cuda", out=tmp_path / "m.safetensors"))
    assert not (tmp_path / "m.safetensors").exists()


def test_alpha_blends_two_and_silence_means_the_mean(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = files
    assert error(run(merge([one, two], alpha=0.6, out=tmp_path / "a.safetensors")), (0.6, one), (0.4, two)) < 1e-5
    assert error(run(merge([one, two], out=tmp_path / "b.safetensors")), (0.5, one), (0.5, two)) < 1e-5


def test_the_child_inherits_and_tells_its_parents(files: tuple[Path, Path], tmp_path: Path) -> None:
    half, two = tmp_path / "half.safetensors", files[1]
    parent(half, "kohya", 0, 4, without=VALUE, dtype=torch.float16)
    run(merge([half, two], alpha=0.6, out=tmp_path / "m.safetensors"))
    header = read_header(tmp_path / "m.safetensors")
    assert any(key.startswith("lora_unet_") for key in header.entries), "the format of the first"
    assert {each.dtype for each in header.entries.values()} == {"F32"}, "the precision of the second"
    assert header.metadata["ss_base_model_version"] == "sd_v1"
    assert json.loads(header.metadata["loractl.parents"]) == [
        {"name": path.name, "content_hash": content_hash(read_tensors(path)[0]), "weight": weight}
        for path, weight in ((half, 0.6), (two, 0.4))
    ]
    assert str(tmp_path) not in "".join(header.metadata.values())


def with_vectors(path: Path, seed: int, vectors: dict[str, float]) -> Path:
    """A file of one module and of biases and norms, whose four numbers are equal."""
    modules = {ATTENTION: random_update((8, 8), 2, 3.0, seed)}
    adapter = Adapter(modules, vectors={name: torch.full((4,), value) for name, value in vectors.items()})
    save_adapter(path, adapter, "kohya", dtype=torch.float32, name=path.stem)
    return path


NORM, BIAS = "unet.down_blocks.0.attentions.0.norm.weight", f"{ATTENTION}.bias"


def test_biases_and_norms_are_added_with_the_weights_of_their_modules(tmp_path: Path) -> None:
    one = with_vectors(tmp_path / "one.safetensors", 0, {NORM: 2.0, BIAS: 3.0})
    two = with_vectors(tmp_path / "two.safetensors", 1, {NORM: 10.0})
    inputs = [{"path": str(one), "weight": 0.5, "layers": {"to_q": -2.0}}, {"path": str(two), "weight": 0.25}]
    job = {"method": "merge", "adapters": inputs, "rank": 1, "output": {"path": str(tmp_path / "m.safetensors")}}
    from loractl_merge import start

    file = start(MergeSpec.model_validate_json(json.dumps(job)), lambda _: None).files["kohya"]
    merged = load_adapter(file, whole=True).vectors
    assert {path: vector.tolist() for path, vector in merged.items()} == {NORM: [3.5] * 4, BIAS: [-3.0] * 4}


def test_biases_and_norms_are_refused_where_they_cannot_be_honored(tmp_path: Path) -> None:
    files = [with_vectors(tmp_path / f"{n}.safetensors", n, {NORM: 1.0}) for n in range(2)]
    with pytest.raises(MismatchError, match=r"0\.safetensors changes 1 biases and norms.*karcher is for weights alone"):
        run(merge(files, method="karcher", out=tmp_path / "m.safetensors"))
    with pytest.raises(MismatchError, match="no place for differences of biases and norms"):
        run(merge(files, format="diffusers", out=tmp_path / "m.safetensors"))
    save_adapter(files[0], Adapter({ATTENTION: random_update((8, 8), 2, 3.0, 0)}, vectors={NORM: torch.ones(5)}),
                 "kohya", name="0", overwrite=True)  # fmt: skip
    with pytest.raises(MismatchError, match=r"norm\.weight has 5 numbers in one adapter and 4 in another"):
        run(merge(files, out=tmp_path / "m.safetensors"))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("method", ["slerp", "karcher", "stock", "ties", "dare", "prune", "breadcrumbs"])
def test_every_method_writes_what_it_can_be_asked_for_again(
    method: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        run(merge(list(files), method=method, rank=5, out=tmp_path / name / "m.safetensors"))
    assert (tmp_path / "a/m.safetensors").read_bytes() == (tmp_path / "b/m.safetensors").read_bytes()
    result = load_adapter(tmp_path / "a/m.safetensors").modules
    assert result.keys() <= SHAPES.keys() and max(low.rank for low in result.values()) == 5


def test_of_a_whole_sum_only_what_may_be_kept_is_held(files: tuple[Path, Path], tmp_path: Path) -> None:
    from loractl_merge.run import pruned

    job = merge(list(files), method="ties", rank=2, out=tmp_path / "m.safetensors")
    grouped = {path: Native((path,)) for path in SHAPES}
    held = pruned(job, [load_adapter(path).modules for path in files], Size(rank=2), grouped, lambda _: None)
    assert held.keys() == SHAPES.keys()
    assert {(len(each.right), len(each.values) > 2) for each in held.values()} == {(2, True)}


def test_at_full_energy_and_density_nothing_is_lost(files: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = files
    for method in ("dare", "prune", "sum"):
        job = merge(
            [one, two], alpha=0.3, method=method, density=1.0, energy=1.0, out=tmp_path / f"{method}.safetensors"
        )
        assert error(run(job), (0.3, one), (0.7, two)) < 1e-5


def test_a_budget_bounds_the_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    run(merge(list(files), budget_mb=0.001, dtype="fp16", format="diffusers", out=out))
    entries = read_header(out).entries.values()
    assert {entry.dtype for entry in entries} == {"F16"}
    assert 800 < sum(entry.end - entry.begin for entry in entries) <= 1000


def test_blocks_and_patterns_weigh_single_modules(files: tuple[Path, Path], tmp_path: Path) -> None:
    inputs = [{"path": str(files[0]), "weight": 1.0, "blocks": "OUTS", "layers": {"q_proj": 0.25}}]
    inputs += [{"path": str(files[1]), "weight": 1.0, "layers": {"unet.*": 0.5, "mid_block.*": -1.0}}]
    output = {"path": str(tmp_path / "m.safetensors")}
    result = run(MergeSpec.model_validate_json(json.dumps({"method": "merge", "adapters": inputs, "output": output})))
    one, two = (load_adapter(path).modules for path in files)
    wanted = {
        TEXT: 0.25 * delta(one[TEXT]),
        CONV: -delta(two[CONV]),
        ATTENTION: 0.5 * delta(two[ATTENTION]),
        VALUE: 0.5 * delta(two[VALUE]),
    }
    assert result.keys() == wanted.keys()
    for name, right in wanted.items():
        assert (delta(result[name]) - right).norm() < 1e-5 * right.norm()


def test_block_weights_are_refused_where_only_a_text_encoder_would_obey(tmp_path: Path) -> None:
    """A transformer has no blocks that they know; an adapter of text encoders alone has the block BASE."""
    transformer = "transformer.transformer_blocks.0.attn.to_q"
    for name, paths in (("flux", (transformer, TEXT)), ("text", (TEXT,))):
        modules = {path: random_update((8, 8), 2, 1.0, 0) for path in paths}
        save_adapter(tmp_path / f"{name}.safetensors", Adapter(modules), "diffusers", dtype=torch.float32, name=name)
    with pytest.raises(MismatchError, match="no module in a block of a UNet: remove its block weights"):
        run(in_blocks(tmp_path / "flux.safetensors", "NONE"))
    (low,) = run(in_blocks(tmp_path / "text.safetensors", "ALL0.5")).values()
    torch.testing.assert_close(low.delta(), 0.5 * random_update((8, 8), 2, 1.0, 0).delta())


def in_blocks(file: Path, blocks: str) -> MergeSpec:
    inputs, output = [{"path": str(file), "weight": 1.0, "blocks": blocks}], {"path": f"{file}.merged.safetensors"}
    return MergeSpec.model_validate_json(json.dumps({"method": "merge", "adapters": inputs, "output": output}))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"alpha": 0.5, "weights": "1,1"}, "alpha blends two adapters without weights"),
        ({"method": "stock", "alpha": 0.5}, "stock finds the weights itself"),
        ({"method": "slerp", "weights": "1,-1"}, "slerp needs weights that are not negative"),
        ({"method": "karcher", "weights": "0,0"}, "not all of them 0"),
        ({"method": "ties"}, "ties gives full rank: say how much of it"),
        ({"method": "tie"}, "--method"),
        ({"energy": 1.5}, "--energy"),
    ],
)
def test_what_a_job_cannot_mean_is_refused(files: tuple[Path, Path], settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(JobError, match=problem):
        merge(list(files), **settings)


def test_other_refusals_of_a_job(files: tuple[Path, Path]) -> None:
    with pytest.raises(JobError, match="slerp is between two adapters"):
        merge([files[0]] * 3, method="slerp")
    for blocks, problem in (("INX", "there is no preset INX"), ([1.0] * 16, "16 numbers are no block weights")):
        job = {"method": "merge", "adapters": [{"path": str(files[0]), "blocks": blocks}]}
        with pytest.raises(ValueError, match=problem):
            MergeSpec.model_validate_json(json.dumps(job))


def test_adapters_that_do_not_fit_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    other, broken = tmp_path / "other.safetensors", tmp_path / "broken.safetensors"
    save_adapter(other, Adapter({ATTENTION: random_update((8, 9), 2, 1.0, 0)}), "kohya", name="other")
    out = tmp_path / "m.safetensors"
    with pytest.raises(MismatchError, match=r"attn1\.to_q is \(8, 8\) in one adapter and \(8, 9\)"):
        run(merge([files[0], other], out=out))
    with pytest.raises(MismatchError, match="nothing is left"):
        run(merge([files[0]], weights="0", out=out))
    low = random_update((8, 8), 2, 1.0, 0)
    low.up[0, 0] = torch.nan
    from safetensors.torch import save_file

    save_file({f"{ATTENTION}.lora_A.weight": low.down, f"{ATTENTION}.lora_B.weight": low.up}, broken)
    with pytest.raises(NumericsError, match="is not finite"):
        run(merge([files[0], broken], out=out))
    assert not out.exists()


def test_the_job_that_comes_with_loractl_runs(tmp_path: Path) -> None:
    outcome, _ = run_job(JOBS / "merge.toml", tmp_path / "m.safetensors")
    assert outcome.numbers["modules"] == 16
    assert {low.rank for low in load_adapter(outcome.files["kohya"]).modules.values()} <= {2, 3, 4}
