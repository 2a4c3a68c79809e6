"""Plugins: what is installed is found, and every way to be wrong names the distribution that is."""

from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

import loractl.plugins
from loractl.errors import PluginError
from loractl.events import Event, Note
from loractl.hookspecs import hookimpl
from loractl.method import Method
from loractl.plugins import load_plugins
from tests.toy import METHODS, ToySpec, run


@dataclass(frozen=True)
class Entry:
    """What importlib.metadata would find: a plugin of a distribution of the same name."""

    name: str
    plugin: Any
    dist: Any = field(default=None)

    def load(self) -> object:
        if isinstance(self.plugin, Exception):
            raise self.plugin
        return self.plugin


def entry(name: str, plugin: Any) -> Entry:
    return Entry(name, plugin, SimpleNamespace(name=f"loractl-{name}", version="1.2"))


def offering(*methods: Any) -> object:
    class Plugin:
        @hookimpl
        def register_methods(self) -> list[Any]:
            return list(methods)

    return Plugin()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    entries: list[Entry] = []
    monkeypatch.setattr(loractl.plugins, "entry_points", lambda group: entries if group == "loractl" else [])
    monkeypatch.delenv("LORACTL_PLUGINS", raising=False)
    return entries


def test_methods_are_sorted_and_know_their_distribution(installed: list[Entry]) -> None:
    installed += [entry("b", offering(METHODS["toy"])), entry("a", offering(METHODS["file"]))]
    plugins = load_plugins()
    assert list(plugins.methods) == ["file", "toy"]
    assert plugins.sources == {"toy": "loractl-b 1.2", "file": "loractl-a 1.2"}


def test_the_environment_and_the_argument_restrict_loading(
    installed: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed += [entry("b", offering(METHODS["toy"])), entry("a", ImportError("never loaded"))]
    monkeypatch.setenv("LORACTL_PLUGINS", "b, ")
    assert list(load_plugins().methods) == ["toy"]
    assert list(load_plugins(["b"]).methods) == ["toy"]
    monkeypatch.setenv("LORACTL_PLUGINS", "")
    assert not load_plugins().methods
    monkeypatch.setenv("LORACTL_PLUGINS", "bb")
    with pytest.raises(PluginError, match='there is no plugin "bb" to load; did you mean b'):
        load_plugins()


class Misspelt:
    @hookimpl
    def register_method(self) -> list[Any]:
        return []


class WrongArguments:
    @hookimpl
    def on_event(self, happening: Event) -> None: ...


class Raising:
    @hookimpl
    def register_methods(self) -> list[Any]:
        raise KeyError("lost")


FAULTS = {
    "import": (ImportError("no module named dreams"), "can't be loaded: ImportError: no module named dreams"),
    "misspelt": (Misspelt(), "is faulty: .*register_method"),
    "arguments": (WrongArguments(), "is faulty: .*happening"),
    "raising": (Raising(), "is faulty: 'lost'"),
    "no list": (SimpleNamespace(register_methods=hookimpl(lambda: 3)), "is faulty: .*iterable"),
    "no method": (offering("toy"), "offers 'toy', which is not a Method"),
    "no spec": (offering(Method("x", "", int, run)), "whose spec is a Spec"),
    "built in": (offering(Method("run", "", ToySpec, run, METHODS["toy"].command)), "command"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_plugin_is_named(installed: list[Entry], fault: str) -> None:
    plugin, says = FAULTS[fault]
    installed += [entry("a", offering(METHODS["toy"])), entry("faulty", plugin)]
    with pytest.raises(PluginError, match=rf"loractl-faulty 1\.2.*{says}|{says}.*loractl-faulty 1\.2"):
        load_plugins()


def test_two_methods_of_one_name_name_both_distributions(installed: list[Entry]) -> None:
    installed += [entry("a", offering(METHODS["toy"])), entry("b", offering(METHODS["toy"]))]
    with pytest.raises(PluginError, match=r'method "toy": loractl-a 1\.2 and loractl-b 1\.2'):
        load_plugins()


def test_a_method_without_a_command_may_have_a_built_in_name(installed: list[Entry]) -> None:
    installed.append(entry("a", offering(Method("run", "", ToySpec, run))))
    assert list(load_plugins().methods) == ["run"]


def test_listeners_and_plugins_hear_every_event(installed: list[Entry]) -> None:
    heard: list[tuple[str, Event]] = []

    @dataclass(eq=False)
    class Ear:
        name: str

        @hookimpl
        def on_event(self, event: Event) -> None:
            heard.append((self.name, event))

    installed.append(entry("a", Ear("plugin")))
    plugins = load_plugins()
    plugins.add_listener(Ear("display"))
    plugins.emit(Note("one"))
    plugins.emit(Note("two"))
    assert sorted(name for name, _ in heard) == ["display", "display", "plugin", "plugin"]
    assert [event for name, event in heard if name == "display"] == [Note("one"), Note("two")]


def test_the_built_in_methods_and_trackers_are_installed_as_plugins_are() -> None:
    found = {point.name for point in loractl.plugins.entry_points(group="loractl")}
    assert {"dreambooth", "infer", "tensorboard", "wandb"} <= found
    assert all(isinstance(point, EntryPoint) for point in loractl.plugins.entry_points(group="loractl"))
