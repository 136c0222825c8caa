"""Which hooks want an event: the registered hooks by kind, and their filters. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ..events import Event, PartitionChangeEvent
from ..hooks import HookKind, HookSpec
from .lanes import NODE_EVENTS


class Interest:
    """The hooks of one node, in the order of their registration.

    Args:
        incarnation: This process, for hooks with ``mine``. Another that has taken its node id over
            is not it.
    """

    def __init__(self, incarnation: str, specs: Iterable[HookSpec]) -> None:
        self._incarnation = incarnation
        self._specs: dict[HookKind, tuple[HookSpec, ...]] = {}
        self.add(specs)

    def add(self, specs: Iterable[HookSpec]) -> None:
        """More hooks, which come after all that are known."""
        for spec in specs:
            self._specs[spec.kind] = (*self._specs.get(spec.kind, ()), spec)
        changes = self._specs.get("partition_change", ())
        # What most programs register needs no look at each hook for each change.
        self._all_changes = changes
        self._changes_of_others = tuple(spec for spec in changes if not spec.mine)
        self._sifted = any(
            spec.partitions is not None or spec.reasons is not None for spec in changes
        )

    def of(self, kind: HookKind) -> tuple[HookSpec, ...]:
        """All hooks of a kind."""
        return self._specs.get(kind, ())

    def wants(self, spec: HookSpec, event: Event) -> bool:
        """Whether a hook of news wants an event of its kind."""
        mine = not isinstance(event, NODE_EVENTS) or event.node.incarnation == self._incarnation
        return mine or not spec.mine

    def wanting(self, event: PartitionChangeEvent) -> tuple[HookSpec, ...]:
        """The hooks that want a change."""
        mine = event.copy_to_node.incarnation == self._incarnation
        specs = self._all_changes if mine else self._changes_of_others
        if not self._sifted:
            return specs
        return tuple(
            spec
            for spec in specs
            if (spec.partitions is None or event.partition_id in spec.partitions)
            and (spec.reasons is None or event.change_reason in spec.reasons)
        )

    @property
    def in_changes(self) -> Literal["none", "mine", "all"]:
        """Of which partition changes any hook wants to know, so that others need not be built."""
        if self._changes_of_others:
            return "all"
        return "mine" if self._all_changes else "none"
