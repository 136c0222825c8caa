"""The registry: what may be registered, and what is refused with which words."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from clusterkit._hook_spec import DEFAULT
from clusterkit.errors import HookRegistrationError
from clusterkit.hooks import (
    HookContext,
    HookContextError,
    Hooks,
    HookSpec,
    hook_context,
)

METHODS = [name for name in dir(Hooks) if name.startswith("on_")]


def one(event: object) -> None: ...
def two(event: object, duration: object) -> None: ...
def none() -> None: ...
def keyword(event: object, *, must: int) -> None: ...
def generator(event: object) -> Iterator[int]:
    yield 1


async def async_generator(event: object) -> AsyncIterator[int]:
    yield 1


class Service:
    def method(self, event: object) -> None: ...


def only(hooks: Hooks) -> HookSpec:
    (spec,) = hooks._specs()
    return spec


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_registers_as_decorator_and_as_call(method: str) -> None:
    assert len(METHODS) == 13
    hooks = Hooks()
    fn = two if method == "on_rebalance_complete" else one
    on = getattr(hooks, method)
    assert on(fn) is fn
    assert on()(fn) is fn
    assert on(timeout=timedelta(minutes=1), retries=2, retry_on=(OSError,), name="mine")(fn) is fn
    plain, also_plain, full = hooks._specs()
    assert plain.kind == also_plain.kind == method.removeprefix("on_")
    assert plain.fn is fn
    assert plain.name == f"{__name__}.{fn.__name__}"
    assert (plain.timeout, plain.retries, plain.retry_on) == (DEFAULT, 0, (Exception,))
    assert (full.timeout, full.retries, full.retry_on) == (60.0, 2, (OSError,))
    assert full.name == "mine"


def test_filters() -> None:
    hooks = Hooks()
    hooks.on_partition_change(mine=True, partitions=["partition-1"], reasons=["manual"])(one)
    spec = only(hooks)
    assert spec.mine
    assert spec.partitions == frozenset({"partition-1"})
    assert spec.reasons == frozenset({"manual"})
    hooks = Hooks()
    hooks.on_node_leave(mine=True)(one)
    assert only(hooks).mine


@pytest.mark.parametrize(
    "fn, name",
    [
        (Service().method, "Service.method"),
        (partial(two, 1), "two"),
        (lambda e: None, "<lambda>"),
        ([].append, "list.append"),
    ],
)
def test_names_of_hooks(fn: Callable[[object], None], name: str) -> None:
    hooks = Hooks()
    hooks.on_node_join(fn)
    assert only(hooks).name.endswith(name)


@pytest.mark.parametrize(
    "fn, options, words",
    [
        (3, {}, "3 cannot be called"),
        (none, {}, "it is called as fn(event)"),
        (two, {}, "missing a required argument"),
        (keyword, {}, "must"),
        (generator, {}, "generator"),
        (async_generator, {}, "generator"),
        (partial(generator), {}, "generator"),
        (one, {"retries": -1}, "retries=-1 must be a whole number"),
        (one, {"retries": 1.5}, "retries=1.5"),
        (one, {"retries": True}, "retries=True"),
        (one, {"timeout": 0}, "timeout=0 must be more than 0"),
        (one, {"timeout": timedelta(seconds=-1)}, "more than 0"),
        (one, {"timeout": float("inf")}, "None is for no limit"),
        (one, {"timeout": float("nan")}, "more than 0"),
        (one, {"timeout": "10"}, "timeout='10' must be a number"),
        (one, {"timeout": True}, "timeout=True"),
        (one, {"retry_on": (3,)}, "exception classes"),
        (one, {"retry_on": (KeyboardInterrupt,)}, "exception classes"),
        (one, {"partitions": "partition-1"}, "a collection of texts"),
        (one, {"partitions": [1]}, "a collection of texts"),
        (one, {"reasons": ["join"]}, "node_join"),
        (one, {"reasons": "manual"}, "a collection of texts"),
    ],
)
def test_what_cannot_work_is_refused_by_name(fn: Any, options: dict[str, Any], words: str) -> None:
    hooks = Hooks()
    with pytest.raises(HookRegistrationError) as caught:
        hooks.on_partition_change(name="fetch", **options)(fn)
    assert str(caught.value).startswith("hook 'fetch' for on_partition_change: ")
    assert words in str(caught.value)
    assert hooks._specs() == ()


def test_complete_hooks_take_two_arguments() -> None:
    with pytest.raises(HookRegistrationError, match="fn\\(event, duration\\)"):
        Hooks()._add("rebalance_complete", one)


def test_an_option_that_does_not_exist_is_a_type_error() -> None:
    options: dict[str, Any] = {"retrys": 3}
    with pytest.raises(TypeError, match="retrys"):
        Hooks().on_fenced(**options)


def test_one_error_class_need_not_be_a_tuple() -> None:
    hooks = Hooks()
    options: dict[str, Any] = {"retry_on": OSError}
    hooks.on_fenced(**options)(one)
    assert only(hooks).retry_on == (OSError,)


def test_hooks_come_in_the_order_of_registration_across_registries() -> None:
    kit, module = Hooks(), Hooks()
    module.on_fenced(name="1")(one)
    kit.on_fenced(name="2")(one)
    kit.include(module)
    module.on_fenced(name="3")(one)
    kit.on_fenced(name="4")(one)
    assert [spec.name for spec in kit._specs()] == ["1", "2", "3", "4"]
    assert [spec.name for spec in module._specs()] == ["1", "3"]


def test_to_include_twice_or_in_a_circle_does_no_harm() -> None:
    first, second, third = Hooks(), Hooks(), Hooks()
    first.include(second)
    first.include(second)
    first.include(first)
    second.include(third)
    third.include(first)
    third.on_fenced(one)
    assert len(first._specs()) == len(third._specs()) == 1
    first._seal("x")
    first._unseal()
    third.on_fenced(one)


def test_only_registries_can_be_included() -> None:
    anything: Any = one
    with pytest.raises(HookRegistrationError, match="takes a Hooks registry"):
        Hooks().include(anything)


def test_a_registry_whose_kit_has_started_says_what_to_do() -> None:
    kit, module, inner = Hooks(), Hooks(), Hooks()
    kit.include(module)
    module.include(inner)
    module.on_fenced(one)
    kit._seal("the kit has started")
    late: list[Callable[[], object]] = [
        lambda: kit.on_fenced(name="late")(one),
        lambda: inner.on_fenced(name="late")(one),
    ]
    for register in late:
        with pytest.raises(HookRegistrationError) as caught:
            register()
        text = str(caught.value)
        assert "hook 'late' for on_fenced was registered too late: the kit has started" in text
        assert "Register hooks before start()" in text
        assert "ClusterKit(hooks=...)" in text
    with pytest.raises(HookRegistrationError, match="too late"):
        module.include(Hooks())
    with pytest.raises(HookRegistrationError, match="removed too late"):
        module.remove_hook(one)
    assert module.remove_hook(two) is False
    kit._unseal()
    inner.on_fenced(one)
    assert len(kit._specs()) == 2


def test_a_late_hook_is_handed_to_every_kit_that_has_started_with_its_registry() -> None:
    class Kit(Hooks):
        def __init__(self) -> None:
            super().__init__()
            self.late: list[HookSpec] = []

        def _added_late(self, spec: HookSpec) -> None:
            self.late.append(spec)

    module, first, second, idle = Hooks(), Kit(), Kit(), Kit()
    for kit in (first, second, idle):
        kit.include(module)
    module.on_fenced(late=True)(one)
    for kit in (first, second):
        kit._seal("started")
    assert (first.late, second.late) == ([], []), "registered in time"
    module.on_unfenced(late=True)(one)
    first.on_fenced(late=True)(lambda e: None)
    assert [spec.kind for spec in first.late] == ["unfenced", "fenced"]
    assert [spec.kind for spec in second.late] == ["unfenced"]
    assert idle.late == []
    assert len(first._specs()) == 3, "for its next start"
    with pytest.raises(HookRegistrationError, match="late=True"):
        module.on_fenced(one)


def test_a_registry_of_two_kits_opens_when_both_have_stopped() -> None:
    module, first, second = Hooks(), Hooks(), Hooks()
    for kit in (first, second):
        kit.include(module)
        kit._seal("started")
    first._unseal()
    with pytest.raises(HookRegistrationError):
        module.on_fenced(one)
    del kit, second
    gc.collect()
    module.on_fenced(one)


def test_remove_takes_a_function_out_of_every_kind() -> None:
    hooks, service = Hooks(), Service()
    hooks.on_fenced(service.method)
    hooks.on_unfenced(service.method)
    hooks.on_unfenced(one)
    assert hooks.remove_hook(service.method)
    assert not hooks.remove_hook(service.method)
    assert only(hooks).fn is one


def test_registration_from_many_threads_loses_nothing() -> None:
    hooks = Hooks()
    threads = [
        threading.Thread(target=lambda: [hooks.on_fenced(one) for _ in range(50)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    orders = [spec.order for spec in hooks._specs()]
    assert len(orders) == 400
    assert orders == sorted(set(orders))


def test_hook_context_outside_of_a_hook() -> None:
    with pytest.raises(HookContextError, match="outside of a hook"):
        hook_context()


def test_a_context_that_is_not_cancelled_lets_the_hook_go_on() -> None:
    HookContext(event_id="e", attempt=1, replayed=False, deadline=None).raise_if_cancelled()
