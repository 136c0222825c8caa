"""Programs that fork, are signalled, and end in odd ways; ``test_processes.py`` runs each.

``process_program.py CASE OPTIONS`` runs the function CASE with a kit's options. What it finds wrong
it raises; what the test is to act upon it prints.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import uvloop

import clusterkit
from clusterkit import FencedError, Guard, KitState, KitStateError, StoreError
from clusterkit.sync import ClusterKit

SECONDS = 20.0
Case = Callable[[dict[str, Any]], None]


def say(text: str) -> None:
    print(text, flush=True)


def kit(options: dict[str, Any], **more: Any) -> ClusterKit:
    return ClusterKit(**(options | more))


def refusal(ask: Callable[[], object]) -> Exception:
    """What it is refused with."""
    try:
        answer = ask()
    except Exception as e:
        return e
    raise AssertionError(f"{ask} answers {answer!r}")


def joined(pid: int) -> int:
    """The exit code of a child; it may not hang."""
    deadline = time.monotonic() + SECONDS
    pause = threading.Event()
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        pause.wait(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def is_refused_in_the_child(ck: ClusterKit, guard: Guard) -> None:
    begun = time.monotonic()
    assert ck.state is KitState.STOPPED
    asks: list[Callable[[], object]] = [
        lambda: ck.is_primary("partition-0"),
        lambda: ck.is_ready("partition-0"),
        lambda: ck.guard("partition-0"),
        lambda: ck.partition_for("k"),
        lambda: ck.my_partitions(),
        lambda: ck.cluster,
        lambda: ck.wait_ready(1),
        lambda: ck.rebalance(),
        ck.start,
    ]
    for ask in asks:
        refused = refusal(ask)
        assert isinstance(refused, KitStateError), refused
        assert "forked" in str(refused), refused
    assert not guard.valid
    assert guard.remaining == timedelta(0)
    refused = refusal(guard.check)
    assert isinstance(refused, FencedError)
    assert "forked" in str(refused)
    assert not ck.readiness().ready
    assert "forked" in ck.readiness().reasons[0]
    ck.request_stop()
    ck.stop()
    assert time.monotonic() - begun < 2


def goes_on(ck: ClusterKit, guard: Guard) -> None:
    """The parent's lease is kept, by itself and beyond its TTL of 2 s."""
    assert ck._run is not None
    assert ck._run.runner.snapshot is not None
    session = ck._run.runner.snapshot.session
    pause = threading.Event()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert guard.check()
        assert ck.is_primary("partition-0")
        pause.wait(0.01)
    assert ck._run.runner.snapshot.session is session
    assert ck.stats().watch_restarts == 0
    before = ck.stats().rebalances
    ck.rebalance()
    while ck.stats().rebalances == before:
        assert time.monotonic() < end + SECONDS
        pause.wait(0.01)


def fork(options: dict[str, Any]) -> None:
    """A child of a running kit, which ends in three ways: by itself, by exit, without clean-up."""
    with kit(options) as ck:
        ck.wait_ready(SECONDS)
        guard = ck.guard("partition-0")
        for how in ("return", "exit", "_exit"):
            pid = os.fork()
            if pid == 0:
                is_refused_in_the_child(ck, guard)
                if how == "return":
                    return  # through `with`, whose end must not leave for the parent
                if how == "exit":
                    sys.exit(0)
                os._exit(0)
            assert joined(pid) == 0, how
        goes_on(ck, guard)
    say("ok")


def fork_and_start_another(options: dict[str, Any]) -> None:
    """gRPC may hang in a child that has its parent's connections: it is told instead."""
    with kit(options) as ck:
        ck.wait_ready(SECONDS)
        pid = os.fork()
        if pid == 0:
            refused = refusal(kit(options, node_id="child").start)
            assert isinstance(refused, StoreError), refused
            assert "forked" in str(refused), refused
            assert "spawn" in str(refused), refused
            os._exit(0)
        assert joined(pid) == 0
    say("ok")


def _start_in_child(ck: ClusterKit) -> None:
    with ck:
        ck.wait_ready(SECONDS)
        assert ck.is_primary("partition-0")


def _make_and_start(options: dict[str, Any]) -> None:
    _start_in_child(kit(options))


def _ended_well(process: Any) -> None:
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0, process.exitcode


def multiprocessing_fork(options: dict[str, Any]) -> None:
    """Made before the fork and started in the child it works, started before it is refused."""
    context = multiprocessing.get_context("fork")
    ck = kit(options)
    _ended_well(context.Process(target=_start_in_child, args=(ck,)))
    assert ck.state is KitState.NEW
    with ck:
        ck.wait_ready(SECONDS)
        guard = ck.guard("partition-0")
        _ended_well(context.Process(target=is_refused_in_the_child, args=(ck, guard)))
        assert guard.check()
    say("ok")


def multiprocessing_spawn(options: dict[str, Any]) -> None:
    """A spawned child has its own kit, whatever its parent does."""
    context = multiprocessing.get_context("spawn")
    with kit(options, cluster="other") as ck:
        ck.wait_ready(SECONDS)
        _ended_well(context.Process(target=_make_and_start, args=(options,)))
        assert ck.is_primary("partition-0")
    say("ok")


def request_stop_on_signals(options: dict[str, Any]) -> None:
    ck = kit(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ck.request_stop())
    with ck:
        ck.wait_ready(SECONDS)
        say("ready")
        while not ck.wait_stopped(0.2):
            pass
    say("ok")


def interrupted(options: dict[str, Any]) -> None:
    """Ctrl-C inside ``with``, and nothing done about it."""
    with kit(options) as ck:
        ck.wait_ready(SECONDS)
        say("ready")
        threading.Event().wait()


def no_stop(options: dict[str, Any]) -> None:
    """The end of the program comes without a stop."""
    ck = kit(options)
    ck.start()
    ck.wait_ready(SECONDS)
    say("ready")


def no_stop_on_word(options: dict[str, Any]) -> None:
    """The same, when it is told to."""
    no_stop(options)
    sys.stdin.read()


def uncaught(options: dict[str, Any]) -> None:
    no_stop(options)
    raise ZeroDivisionError("of the application's own")


def no_stop_with_hooks(options: dict[str, Any]) -> None:
    """The same with hooks, one of which never ends, and with an event loop of the kit's own."""
    ck = kit(options)
    begun = threading.Event()

    @ck.on_node_join
    def endless(event: object) -> None:
        begun.set()
        threading.Event().wait()

    @ck.on_partition_role
    async def role(event: object) -> None: ...

    ck.start()
    assert begun.wait(SECONDS)
    say("ready")


def request_stop_and_end(options: dict[str, Any]) -> None:
    """The stop is asked for and nobody waits for it."""
    ck = kit(options)
    ck.start()
    ck.wait_ready(SECONDS)
    say("ready")
    ck.request_stop()


def sys_exit(options: dict[str, Any]) -> None:
    with kit(options) as ck:
        ck.wait_ready(SECONDS)
        say("ready")
        sys.exit(7)


def daemon_thread(options: dict[str, Any]) -> None:
    """A thread uses the kit while the interpreter ends."""
    ck = kit(options)
    ck.start()
    ck.wait_ready(SECONDS)
    working = threading.Event()

    def work() -> None:
        while True:
            ck.is_primary("partition-0")
            ck.readiness()
            ck.partition_for("k")
            working.set()

    for _ in range(2):
        threading.Thread(target=work, daemon=True).start()
    assert working.wait(SECONDS)
    say("ready")


def stop_twice(options: dict[str, Any]) -> None:
    """Twice in a row, from two threads at once, and a start after all of it."""
    ck = kit(options)
    for _ in range(2):
        ck.start()
        ck.wait_ready(SECONDS)
        threads = [threading.Thread(target=ck.stop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        assert ck.state is KitState.STOPPED
        ck.stop()
    left = {t.name for t in threading.enumerate() if t.name.startswith("clusterkit-")}
    assert left <= {"clusterkit-stop"}, left  # it has said its last word and is about to end
    say("ok")


async def _serve(options: dict[str, Any]) -> None:
    async with clusterkit.ClusterKit(**options) as ck:
        await ck.wait_ready(SECONDS)
        say("ready")
        await asyncio.Event().wait()


def asyncio_interrupted(options: dict[str, Any]) -> None:
    asyncio.run(_serve(options))


def uvloop_interrupted(options: dict[str, Any]) -> None:
    uvloop.run(_serve(options))


def uvloop_hooks(options: dict[str, Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uvloop.Loop)
        ck = clusterkit.ClusterKit(**options)
        loops: list[object] = []

        @ck.on_partition_change
        async def change(event: object) -> None:
            loops.append(asyncio.get_running_loop())

        async with ck:
            await ck.wait_ready(SECONDS)
        assert loops
        assert set(map(id, loops)) == {id(loop)}

    uvloop.run(main())
    say("ok")


def watch_ownership(options: dict[str, Any]) -> None:
    """Prints, whenever it changes, whether it is the primary and why it believes so."""
    with kit(options) as ck:
        ck.wait_ready(SECONDS)
        assert ck._run is not None
        pause = threading.Event()
        said = None
        while True:
            # The proof first: what is true of the answer was true before it.
            answer = ck.is_primary("partition-0")
            snapshot = ck._run.runner.snapshot
            session = None if snapshot is None else snapshot.session
            now = (answer, "" if session is None else f"{session.lease_id:x}")
            if now != said:
                say(f"{now[0]} {now[1]} {time.monotonic()}")
                said = now
            pause.wait(0.001)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    case: Case = globals()[sys.argv[1]]
    case(json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
