"""Plugins: found by entry points, loaded one by one, and the only place where hooks are called."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import pluggy

from loractl import hookspecs
from loractl.errors import PluginError
from loractl.events import Event
from loractl.method import Method
from loractl.problems import did_you_mean
from loractl.specs import Spec

GROUP = "loractl"
BUILT_IN_COMMANDS = ("run", "check", "methods", "schema", "new", "show")


@dataclass(frozen=True)
class Plugins:
    """`methods` by name, sorted; `sources` says which distribution each comes from ("loractl 0.1.0")."""

    manager: pluggy.PluginManager
    methods: Mapping[str, Method[Any]]
    sources: Mapping[str, str]

    def emit(self, event: Event) -> None:
        self.manager.hook.on_event(event=event)

    def add_listener(self, listener: object) -> None:
        """Registers an object whose `on_event` is marked with hookimpl."""
        self.manager.register(listener)


def load_plugins(only: Collection[str] | None = None) -> Plugins:
    """All installed plugins, or those whose entry points are named by `only` or by LORACTL_PLUGINS.

    Raises PluginError, naming the distribution, where one does not load, misspells a hook or clashes with another.
    """
    manager = pluggy.PluginManager("loractl")
    manager.add_hookspecs(hookspecs)
    methods: dict[str, Method[Any]] = {}
    sources: dict[str, str] = {}
    for entry in _chosen(only):
        source = _source(entry)
        for method in _methods(manager, _load(entry, source), source):
            _refuse_clash(method, source, sources)
            methods[method.name], sources[method.name] = method, source
    return Plugins(manager, dict(sorted(methods.items())), sources)


def _chosen(only: Collection[str] | None) -> Iterator[EntryPoint]:
    found = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    listed = os.environ.get("LORACTL_PLUGINS")
    if only is None and listed is not None:
        only = [name.strip() for name in listed.split(",") if name.strip()]
    known = {entry.name for entry in found}
    for name in sorted(set(only or ()) - known):
        raise PluginError(f'there is no plugin "{name}" to load; {did_you_mean(name, known)}')
    return (entry for entry in found if only is None or entry.name in only)


def _source(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _load(entry: EntryPoint, source: str) -> object:
    try:
        return entry.load()
    except Exception as error:
        raise PluginError(f"the plugin {source} can't be loaded: {type(error).__name__}: {error}") from error


def _methods(manager: pluggy.PluginManager, plugin: object, source: str) -> list[Method[Any]]:
    """Registers a plugin and asks it for its methods; its own mistakes become PluginError."""
    offered: list[Any] = []
    try:
        manager.register(plugin)
        manager.check_pending()
        for call in manager.hook.register_methods.get_hookimpls():
            if call.plugin is plugin:
                offered.extend(cast(Sequence[Any], call.function()))
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise PluginError(f"the plugin {source} is faulty: {cause}") from error
    for method in offered:
        if not (isinstance(method, Method) and isinstance(method.spec, type) and issubclass(method.spec, Spec)):
            raise PluginError(f"the plugin {source} offers {method!r}, which is not a Method whose spec is a Spec")
    return offered


def _refuse_clash(method: Method[Any], source: str, sources: Mapping[str, str]) -> None:
    if method.name in sources:
        both = f"{sources[method.name]} and {source}"
        raise PluginError(f'two plugins offer the method "{method.name}": {both}; uninstall one')
    if method.command is not None and method.name in BUILT_IN_COMMANDS:
        raise PluginError(f'the command "{method.name}" of {source} has the name of a built-in command')
