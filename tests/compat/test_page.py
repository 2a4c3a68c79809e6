"""docs/coming-from-lora.md: its code runs, its job is sound, and the names and signatures are the original's."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from loractl import compat
from loractl.job import read_job
from loractl.plugins import load_plugins
from tests.cli.calling import call

PAGE = (Path(__file__).parents[2] / "docs/coming-from-lora.md").read_text(encoding="utf-8")

# Read from lora_diffusion's lora.py and lora_manager.py: the arguments in their order.
SIGNATURES = {
    "inject_trainable_lora": "model target_replace_module r loras verbose dropout_p scale",
    "inject_trainable_lora_extended": "model target_replace_module r loras",
    "extract_lora_ups_down": "model target_replace_module",
    "monkeypatch_or_replace_lora": "model loras target_replace_module r",
    "monkeypatch_or_replace_lora_extended": "model loras target_replace_module r",
    "monkeypatch_add_lora": "model loras target_replace_module alpha beta",
    "monkeypatch_remove_lora": "model",
    "tune_lora_scale": "model alpha",
    "set_lora_diag": "model diag",
    "collapse_lora": "model alpha",
    "inspect_lora": "model",
    "apply_learned_embed_in_clip": "learned_embeds text_encoder tokenizer token idempotent",
    "patch_pipe": "pipe maybe_unet_path token r patch_unet patch_text patch_ti idempotent_token "
    "unet_target_replace_module text_target_replace_module",
    "save_safeloras": "modelmap outpath",
    "save_safeloras_with_embeds": "modelmap embeds outpath",
    "load_safeloras": "path device",
    "load_safeloras_embeds": "path device",
    "load_safeloras_both": "path device",
    "LoRAManager": "lora_paths_list pipe",
    "LoraInjectedLinear": "in_features out_features bias r dropout_p scale",
    "LoraInjectedConv2d": "in_channels out_channels kernel_size stride padding dilation groups bias r dropout_p scale",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks("python"):
        exec(compile(code, "coming-from-lora.md", "exec"), {})
    assert [file.name for file in tmp_path.iterdir()] == ["lora.safetensors"]


def test_its_job_is_sound(tmp_path: Path) -> None:
    (job,) = blocks("toml")
    (tmp_path / "data/data_disney").mkdir(parents=True)
    (tmp_path / "job.toml").write_text(job, encoding="utf-8")
    assert read_job(tmp_path / "job.toml", load_plugins().methods, []).method == "pti"


def test_its_way_to_prepare_pictures_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PICTURES").mkdir()
    (command,) = re.findall(r"`loractl (ppim PICTURES OUT .*?)`", PAGE)
    code, out, err = call(capsys, "--print-job", *shlex.split(command), "--size", "768", "--subject", "faces")
    assert (code, err) == (0, "")
    assert 'layout = "original"' in out and 'model = "CIDAS/clipseg-rd64-refined"' in out


def test_every_name_is_on_the_page_with_the_arguments_of_the_original() -> None:
    public = {name for name in compat.__all__ if not name.endswith("_TARGET_REPLACE")}
    assert public == SIGNATURES.keys()
    assert [name for name in public if f"`{name}`" not in PAGE] == []
    for name, arguments in SIGNATURES.items():
        assert list(inspect.signature(getattr(compat, name)).parameters) == arguments.split(), name
