"""The layers of docs/design.md, held against every import in the code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "loractl").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))

# Each layer may import what stands before it in its list. What is shared, `loractl` itself included, is for all.
SHARED = ["", "errors", "events", "catalog", "bases", "samplers", "launch"]
FRONT = ["lines", "ranges", "specs", "sections", "fields", "problems", "method", "captioner", "hookspecs", "plugins"]
FRONT += ["template", "job", "cli", "__main__"]
BACK = ["tensors", "device", "formats", "inject", "families", "plan", "sample", "data"]
BACK += ["prepare", "lab", "evaluate", "train"]
MIDDLE = ["runs"]  # what the training plugins' run.py share: it sees the back, and the jobs' sections
HEAVY = {"torch", "diffusers", "transformers", "safetensors", "peft", "accelerate", "numpy", "PIL"}
COMPAT = ["compat"]  # the names of cloneofsimo/lora, over the back; nothing else may import it
ORDERS = (FRONT, BACK, ["specs", "sections", "method", *BACK, *MIDDLE], [*BACK, *COMPAT])
# `loractl show` reads a file, `loractl plan` counts on shapes; the imports are in their functions.
BRIDGES = {"cli/commands.py": "formats", "cli/plan.py": "plan"}

# What is done in one place only: the dotted name, and where it may be written.
PLACES = {
    "torch.cuda": {"loractl/device.py"},
    "tomllib": {"loractl/job.py", "loractl/lines.py", "loractl/data/kohya.py"},  # the last reads kohya's own files
    "tomli_w": {"loractl/job.py"},
    "manager.hook": {"loractl/plugins.py"},
    "sys.exit": {"loractl/cli/__init__.py"},
    "rich": {"loractl/cli/__init__.py", "loractl/cli/commands.py", "loractl/cli/display.py"},
}


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported anywhere in a tree; `from a import b` is a and a.b."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, "imports are absolute"
            yield str(each.module)
            yield from (f"{each.module}.{alias.name}" for alias in each.names)


def imports_on_loading(node: ast.AST) -> Iterator[str]:
    """The same without the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from imports(child)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_on_loading(child)


def layer(name: str) -> str | None:
    """The layer a dotted name of ours belongs to; "" for the package itself, None for what is not a module of ours."""
    package, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return None if package != "loractl" else first if first in {*SHARED, *FRONT, *BACK, *MIDDLE, *COMPAT} else ""


def layer_of(file: Path) -> str:
    first = file.relative_to(ROOT / "loractl").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def plugin_of(file: Path) -> str:
    return file.relative_to(ROOT / "plugins").parts[0]


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer_of(file) for file in CORE} == {*SHARED, *FRONT, *BACK, *MIDDLE, *COMPAT}


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_point_down(file: Path) -> None:
    own = layer_of(file)
    order = [*SHARED, *next((layers for layers in ORDERS if own in layers), [])]
    allowed = {*order[: order.index(own) + 1]} | {bridge for end, bridge in BRIDGES.items() if str(file).endswith(end)}
    found = {name for name in imports(tree(file)) if layer(name) is not None and layer(name) not in allowed}
    assert not found


LIGHT = [file for file in CORE if layer_of(file) not in BACK + MIDDLE + COMPAT]


@pytest.mark.parametrize("file", LIGHT, ids=lambda file: file.name)
def test_the_front_is_light(file: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(tree(file))} & HEAVY
    assert not {layer(name) for name in imports_on_loading(tree(file))} & {*BACK, *MIDDLE, *COMPAT}


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: str(file.relative_to(ROOT / "plugins")))
def test_plugins_stand_alone(file: Path) -> None:
    ours = {name.partition(".")[0] for name in imports(tree(file)) if name.startswith("loractl_")}
    assert ours <= {plugin_of(file)}
    assert "compat" not in {layer(name) for name in imports(tree(file))}


@pytest.mark.parametrize("plugin", sorted({plugin_of(file) for file in PLUGINS}))
def test_what_a_plugin_loads_at_start_up_is_light(plugin: str) -> None:
    """Follows the plugin's own imports from its __init__."""
    waiting, seen = [f"{plugin}.__init__"], set[str]()
    while waiting:
        module = waiting.pop()
        file = ROOT / "plugins" / f"{module.replace('.', '/')}.py"
        if module in seen or not file.is_file():
            continue
        seen.add(module)
        names = list(imports_on_loading(tree(file)))
        waiting += [name for name in names if name.startswith(plugin)]
        assert not {name.partition(".")[0] for name in names} & HEAVY
        assert not {layer(name) for name in names} & {*BACK, *MIDDLE, *COMPAT}


@pytest.mark.parametrize("name", PLACES)
def test_one_place_each(name: str) -> None:
    users = {str(file.relative_to(ROOT)) for file in [*CORE, *PLUGINS] if uses(tree(file), name)}
    assert users == PLACES[name]


def uses(node: ast.AST, name: str) -> bool:
    """Whether a tree imports a dotted name, or writes it, also behind another: `self.manager.hook`."""
    imported = any(f"{each}.".startswith(f"{name}.") for each in imports(node))
    written = (ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.Attribute))
    return imported or any(f".{each}.".endswith(f".{name}.") for each in written)
