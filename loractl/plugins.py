"""Plugins: found by entry points, loaded one by one, and the only place where hooks are called."""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from loractl import hookspecs
from loractl.captioner import Captioner
from loractl.catalog import FamilyPlace, offer_families
from loractl.errors import JobError, PluginError, did_you_mean
from loractl.events import Event
from loractl.method import Method
from loractl.specs import Spec

GROUP = "loractl"
BUILT_IN_COMMANDS = ("run", "check", "plan", "methods", "schema", "new", "show")


@dataclass(frozen=True)
class Plugins:
    """`methods` and `captioners` by name, sorted; `sources` says which distribution a method comes from
    ("loractl 0.1.0").
    """

    manager: pluggy.PluginManager
    methods: Mapping[str, Method[Any]]
    sources: Mapping[str, str]
    captioners: Mapping[str, Captioner] = field(default_factory=dict)

    def captioner(self, name: str) -> Captioner:
        """Raises JobError, with the nearest name, when no plugin offers it."""
        if name not in self.captioners:
            raise JobError(f'there is no captioner "{name}"; {did_you_mean(name, self.captioners)}')
        return self.captioners[name]

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
    found: dict[str, dict[str, Any]] = {what: {} for what in _KINDS}
    sources: dict[str, dict[str, str]] = {what: {} for what in _KINDS}
    for entry in _chosen(only):
        source = _source(entry)
        plugin = _register(manager, _load(entry, source), source)
        for what, kind in _KINDS.items():
            for offer in _offers(manager, kind.hook, plugin, source):
                kind.check(offer, source)
                _refuse_clash(what, offer.name, source, sources[what])
                found[what][offer.name], sources[what][offer.name] = offer, source
    ordered = {what: dict(sorted(offers.items())) for what, offers in found.items()}
    offer_families(ordered["family for"].values())
    return Plugins(manager, ordered["method"], sources["method"], ordered["captioner"])


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


def _register(manager: pluggy.PluginManager, plugin: object, source: str) -> object:
    """The plugin, whose hooks are called from now on; a hook that does not exist is PluginError."""
    try:
        manager.register(plugin)
        manager.check_pending()
    except Exception as error:
        raise _faulty(source, error) from error
    return plugin


def _offers(manager: pluggy.PluginManager, hook: str, plugin: object, source: str) -> list[Any]:
    """What one plugin answers to a hook; its own mistakes become PluginError."""
    calls = [call for call in getattr(manager.hook, hook).get_hookimpls() if call.plugin is plugin]
    try:
        return [each for call in calls for each in call.function()]
    except Exception as error:
        raise _faulty(source, error) from error


def _faulty(source: str, error: Exception) -> PluginError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return PluginError(f"the plugin {source} is faulty: {cause}")


def _refuse_clash(what: str, name: str, source: str, sources: Mapping[str, str]) -> None:
    if name in sources:
        raise PluginError(f'two plugins offer the {what} "{name}": {sources[name]} and {source}; uninstall one')


def _check_method(offer: Any, source: str) -> None:
    if not (isinstance(offer, Method) and isinstance(offer.spec, type) and issubclass(offer.spec, Spec)):
        raise PluginError(f"the plugin {source} offers {offer!r}, which is not a Method whose spec is a Spec")
    if offer.command is not None and offer.name in BUILT_IN_COMMANDS:
        raise PluginError(f'the command "{offer.name}" of {source} has the name of a built-in command')


def _check_captioner(offer: Any, source: str) -> None:
    if not isinstance(offer, Captioner):
        raise PluginError(f"the plugin {source} offers {offer!r}, which is not a Captioner")


def _check_family(offer: Any, source: str) -> None:
    if not isinstance(offer, FamilyPlace):
        raise PluginError(f"the plugin {source} offers {offer!r}, which is not a FamilyPlace")


@dataclass(frozen=True)
class _Kind:
    """What plugins offer by name: the hook that asks for it, and a check that raises PluginError."""

    hook: str
    check: Callable[[Any, str], None]


_KINDS = {
    "method": _Kind("register_methods", _check_method),
    "captioner": _Kind("register_captioners", _check_captioner),
    "family for": _Kind("register_families", _check_family),
}
