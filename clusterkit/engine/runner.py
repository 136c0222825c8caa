"""The running node: one thread that owns the state machine, and the threads that serve it.

Everybody who has news puts it into one queue: the watch thread, the keep-alive thread, the hook
executors, and the application. The runner thread takes one after another, asks the machine, and
carries out the effects. Nothing else writes state, so there are no locks around it.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from dataclasses import replace
from typing import Protocol

from ..core import codec
from ..core.keys import Keys
from ..core.plan import held_by
from ..core.records import RebalanceRequest
from ..errors import KitStateError, NodeIdConflictError
from ..hooks import HookSpec
from ..metrics import MetricsSink
from ..model import KitState
from ..ports import Clock, Put, Store, Txn
from . import effects as fx
from .checks import Checks, HealthCheck
from .comparison import ReadView
from .departures import CloseHistory
from .errands import Errands
from .executors import Executors
from .jobs import CancelJob, HookSlow, HookTimedOut, RebalanceCompleted, StartJobs
from .join import DisplacedError, Profile
from .lookup import Lookup
from .machine import Machine
from .measure import Measure
from .messages import (
    AddHook,
    AddSink,
    Await,
    Begin,
    Checked,
    Expect,
    Finished,
    JobsEnded,
    LookAtClock,
    Message,
    Read,
    Registered,
    RegisterFailed,
    Stop,
)
from .presence import Presence
from .pruning import PruneHistory
from .runs import Run
from .session import LeaseDoubted, LeaseLost, LeaseProven
from .snapshot import Snapshot
from .watcher import Changed, Reread, WatchBroke, Watcher

logger = logging.getLogger(__name__)

_JOIN_SECONDS = 2.0
_CHECK_SECONDS = 1.0
_EXIT_SECONDS = 2.0


class Attendant(Protocol):
    """What lives exactly as long as a run does, such as a server that tells about it."""

    def open(self) -> None:
        """The run is about to begin: nothing has been asked of etcd yet.

        Raises:
            ClusterKitError: It cannot be; then there is no run either.
        """

    def close(self) -> None:
        """The run is over. Returns when nothing is left. Also called when ``open`` was not."""


class Runner:
    """One run of a node, from a start to a stop; it is not used again.

    Args:
        store: etcd. The runner closes it.
        clock: Time.
        keys: The cluster's keys.
        machine: The state machine, new.
        profile: What the node joins with; None for an observer.
        executors: Makes what runs hooks, given where to report.
        checks: Makes what runs health checks, given where to report; None for none.
        measure: Where measurements go.
        attendant: What is to begin and end with the run; None for nothing.
        connect_timeout: Seconds for the first reading and for the join.
        call_timeout: Seconds for each later call of etcd.

    Attributes:
        snapshot: What lookups read; None before the first reading.
        lookup: The partitions of keys in that snapshot.
        ended: Done when the run has ended, however it came about.
        failure: The defect that ended it, None for none.
        watch_restarts: How often the watch broke.
        view_since: Since when, by the clock, the view has been at its revision.
        forked: Whether this is the copy that a forked child has of its parent's run.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        keys: Keys,
        machine: Machine,
        profile: Profile | None,
        executors: Callable[[Callable[[list[Run]], None]], Executors],
        connect_timeout: float,
        call_timeout: float,
        checks: Callable[[Callable[[tuple[str, ...]], None]], Checks] | None = None,
        measure: Measure | None = None,
        attendant: Attendant | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._machine = machine
        self._measure = Measure() if measure is None else measure
        self._attendant = attendant
        self._profile = profile
        self._connect_timeout = connect_timeout
        self._call_timeout = call_timeout
        self._queue: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._executors = executors(lambda ends: self._queue.put(JobsEnded(ends)))
        self._checks: Checks | None = None
        if checks is not None:
            self._checks = checks(lambda failing: self._queue.put(Checked(failing)))
        self._waiting: list[Await] = []
        self._presence = Presence(
            store=store,
            clock=clock,
            keys=keys,
            profile=profile,
            timeout=connect_timeout,
            tell=self._queue.put,
        )
        self._stopping = False
        self._leaver: threading.Thread | None = None
        self._held: tuple[int, ...] = ()
        self._errands: Errands | None = None
        self._watcher: Watcher | None = None
        self._thread = threading.Thread(target=self._run, name="clusterkit-runner", daemon=True)
        self.snapshot: Snapshot | None = None
        self.lookup = Lookup()
        self.watch_restarts = 0
        self.view_since = clock.monotonic()
        self.forked = False
        self.failure: BaseException | None = None
        self.ended: Future[None] = Future()
        _running.add(self)

    # -- for any thread ----------------------------------------------------------------------

    @property
    def state(self) -> KitState:
        """The state of the kit during this run."""
        if self.forked or self.ended.done():
            return KitState.STOPPED
        return KitState.JOINING if self.snapshot is None else self.snapshot.kit_state

    @property
    def alive(self) -> bool:
        """Whether the run goes on: it has not ended, and is not ending by a defect."""
        if self.forked or self.ended.done() or self.failure is not None:
            return False
        return self._thread.ident is None or self._thread.is_alive()

    @property
    def divergences(self) -> int:
        """How often the view was found to be not what etcd has."""
        return self._machine.divergences

    def start(self) -> None:
        """Reads the cluster, joins, and returns when the view has this node in it. Blocks.

        Raises:
            ClusterKitError: It could not; everything that was started is ended again.
        """
        try:
            if self._attendant is not None:
                self._attendant.open()
            read = self._store.range(self._keys.root, timeout=self._connect_timeout)
        except BaseException:
            self._executors.close(0.0)
            self._store.close()
            self._dismiss()
            self.ended.set_result(None)
            raise
        self._queue.put(Begin(read))
        self._thread.start()
        try:
            # A stop may come at any moment. It awaits this one, to find all that it has to end.
            with self._presence.joining():
                self._watcher = Watcher(
                    self._store,
                    self._keys.root,
                    read,
                    self._queue.put,
                    read_timeout=self._call_timeout,
                )
                if self._profile is not None:
                    self._serve(self._profile)
            joined = self.when(lambda s: s.kit_state is not KitState.JOINING)
            # A hook of the join may have stopped the node by now: it was started all the same.
            wait((joined, self.ended), return_when=FIRST_COMPLETED)
            if self.failure is not None:
                joined.result()
        except BaseException:
            self.request_stop(0.0)
            self.join()
            if self.failure is not None:
                raise self._stopped() from self.failure
            raise

    def request_stop(self, timeout: float) -> None:
        """Asks the node to leave. Returns at once; safe in a signal handler and in a hook."""
        self._presence.cancel()
        self._queue.put(Stop(timeout))

    def join(self, timeout: float | None = None) -> None:
        """Waits for the end of the run, and of its thread, which says so with its last words.

        Raises:
            TimeoutError: The run has not ended within ``timeout`` seconds.
        """
        self.ended.result(timeout)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def when(self, predicate: Callable[[Snapshot], bool]) -> Future[None]:
        """A future that is done when the predicate first holds; it fails if the run ends before."""
        waiting = Await(predicate, Future())
        self._queue.put(waiting)
        if self.ended.done():  # perhaps nobody reads the queue any more
            self._fail(waiting)
        return waiting.future

    def request_rebalance(self, reason: str) -> int:
        """Asks every node for a rebalance; the revision of the request. Blocks.

        Raises:
            KitStateError: The run has ended.
            StoreError: etcd cannot be asked.
        """
        if self.ended.done():
            raise KitStateError(
                "the kit has stopped; start() it before asking for a rebalance",
                state=KitState.STOPPED,
            )
        node_id = "" if self._profile is None else self._profile.node_id
        request = RebalanceRequest(node_id, reason, self._clock.now())
        put = Put(self._keys.rebalance, codec.encode_rebalance(request))
        return self._store.txn(Txn((), (put,)), timeout=self._call_timeout).revision

    def rejoin(self) -> None:
        """Joins again after a removal or a takeover; returns when the view has it. Blocks.

        Raises:
            KitStateError: The node is not out, or was put out again meanwhile.
            ClusterKitError: Joining failed; the node is still out.
        """
        self._refuse_unless_out()
        session = self._presence.rejoin(lambda: self.state is KitState.REMOVED)

        def over(s: Snapshot) -> bool:
            ended = session is not None and session.lost
            return ended or s.kit_state not in (KitState.REMOVED, KitState.FENCED)

        back = self.when(over)
        back.result()
        if session is not None and session.lost:
            raise KitStateError(
                "the node joined again, and that stay has ended already; see state, and call "
                "rejoin() once more if it is 'removed'",
                state=self.state,
            )

    def _refuse_unless_out(self) -> None:
        advice = {
            KitState.JOINING: "it is joining; wait for start()",
            KitState.JOINED: "it is a member",
            KitState.FENCED: "it joins again by itself as soon as etcd answers",
            KitState.DRAINING: "it is stopping; start() it afterwards",
            KitState.STOPPED: "it has stopped; start() it",
        }
        state = self.state
        if state in advice:
            raise KitStateError(
                f"rejoin() is for a node that was removed or taken over, and this one is "
                f"{str(state)!r}: {advice[state]}",
                state=state,
            )

    def add_check(self, check: HealthCheck) -> None:
        """Runs a health check as well, from now on."""
        if self._checks is not None:
            self._checks.add(check)

    def add_hook(self, spec: HookSpec) -> None:
        """Has a hook told of what is so already, and of all that comes."""
        self._queue.put(AddHook(spec))

    def add_sink(self, sink: MetricsSink) -> None:
        """Hands measurements to one more sink, from now on."""
        self._queue.put(AddSink(sink))

    def catch_up(self, timeout: float) -> bool:
        """Does what is due by a clock that a test has moved; the threads wake up by the machine's.

        Returns:
            Whether all of it was begun within ``timeout`` seconds; hooks may still run.
        """
        renewed = self._presence.catch_up(timeout)
        self._queue.put(LookAtClock())
        seen = self.when(lambda _: True)
        wait((seen, self.ended), timeout, return_when=FIRST_COMPLETED)
        return renewed and (seen.done() or self.ended.done())

    def forget_parent(self) -> None:
        """In a forked child: whatever the parent may do, this process may not."""
        self.forked = True
        self.lookup.close()
        if self.snapshot is not None:
            self.snapshot = replace(self.snapshot, session=None, kit_state=KitState.STOPPED)
        # Not the parent's: a thread that is not here may have held its lock at the fork.
        self.ended = Future()
        self.ended.set_result(None)

    def leave_at_exit(self, seconds: float) -> None:
        """Leaves because the interpreter ends; no hook is run. Takes about ``seconds`` at most.

        From Python 3.12 on no thread can be started any more at this point, so all of it happens
        on the thread that calls, which waits for the others.
        """
        presence = self._presence
        if self.forked or (self.ended.done() and not presence.present):
            return
        end = time.monotonic() + seconds
        if self._stopping or presence.cancelled:
            wait((self.ended,), timeout=seconds)  # a stop is under way: it does more than this
        presence.cancel()
        # Without its runner the node owns nothing, follows nothing and starts no hook.
        self._queue.put(Finished())
        wait((self.ended,), timeout=max(0.0, end - time.monotonic()))
        with presence.at_rest(max(0.0, end - time.monotonic())) as at_rest:
            if not at_rest:
                return
            presence.close(max(0.0, end - time.monotonic()))
            if self._watcher is not None:
                self._watcher.close(max(0.0, end - time.monotonic()))
            self._note_held()
            presence.leave_at_exit(self._held, max(0.1, end - time.monotonic()))
            self._store.close()

    def _serve(self, profile: Profile) -> None:
        self._errands = Errands(self._store, self._keys, profile.node_id, self._call_timeout)
        self._presence.open()
        self._errands.check_server()
        if self._checks is not None:
            self._checks.start()

    # -- leaving: on a thread of its own -----------------------------------------------------

    def _leave(self, timeout: float) -> None:
        deadline = self._clock.monotonic() + timeout
        try:
            self._await_roles(timeout)
            self._presence.leave(self._held)
            # The lease is gone or left to itself: only now is there nothing more to keep alive.
            if self._checks is not None:
                self._checks.close(_JOIN_SECONDS)
            self._presence.close(_JOIN_SECONDS)
            if self._watcher is not None:
                self._watcher.close(_JOIN_SECONDS)
            if self._errands is not None:
                self._errands.close(_JOIN_SECONDS)
            self._executors.close(max(0.0, deadline - self._clock.monotonic()))
            self._store.close()
        finally:
            self._queue.put(Finished())

    def _await_roles(self, timeout: float) -> None:
        """Work that follows ownership ends before another node may take it up."""
        told = self.when(lambda _: self._machine.roles_told())
        with contextlib.suppress(TimeoutError, KitStateError):
            told.result(0.0 if self.failure is not None else timeout)

    # -- the runner thread -------------------------------------------------------------------

    def _run(self) -> None:
        self._measure.open()
        while True:
            message = self._next()
            if isinstance(message, Finished):
                break
            try:
                if isinstance(message, Stop):
                    self._stop(message)
                elif isinstance(message, Await):
                    self._waiting.append(message)
                elif self.failure is None:
                    before = self.snapshot
                    for effect in self._tell(message):
                        self._carry_out(effect)
                    now = self.snapshot
                    if now is not None and (before is None or before.rows is not now.rows):
                        self._measure.assigned(now.rows)  # behind the hooks, which are on their way
                if self.failure is None:
                    self._check_waiting()
            except Exception as e:
                self._break_down(e)
                self.request_stop(0.0)
        self._finish()
        if self._leaver is not None:
            self._leaver.join(_JOIN_SECONDS)

    def _break_down(self, defect: Exception) -> None:
        # A node that cannot follow the cluster must not go on serving a view of the past.
        logger.critical("the node failed by a defect of ClusterKit, and leaves", exc_info=defect)
        self.failure = defect
        self._presence.lose()

    def _next(self) -> Message | None:
        wake_at = None if self.failure is not None else self._machine.wake_at()
        if wake_at is None:
            return self._queue.get()
        timeout = max(0.0, wake_at - self._clock.monotonic())
        if self._executors.busy:
            # A closed application loop tells nobody: whoever waits for hooks looks now and then.
            timeout = min(timeout, _CHECK_SECONDS)
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            self._executors.check()
        # What has ended by now is not out of time.
        with contextlib.suppress(queue.Empty):
            return self._queue.get_nowait()
        return None

    def _tell(self, message: Message | None) -> list[fx.Effect]:
        at = fx.Instant(self._clock.monotonic(), self._clock.now())
        match message:
            case None | LookAtClock():
                return self._machine.tick(at)
            case JobsEnded(ends):
                self._measure.hooks_ended(ends)
                return self._machine.jobs_ended([(e.job.id, e.error) for e in ends], at)
            case Changed(batch):
                return self._machine.changed(batch, at)
            case LeaseDoubted() | LeaseLost() | LeaseProven():
                return self._machine.lease(message, at)
            case Reread(result, reason):
                return self._machine.reread(result, reason, at)
            case Read(result, number):
                return self._machine.compare(result, number, at)
            case Checked(failing):
                return self._machine.checked(failing, at)
            case WatchBroke():
                self.watch_restarts += 1
            case AddHook(spec):
                return self._machine.hook_added(spec, at)
            case AddSink(sink):
                self._measure.add(sink)
            case Begin(read):
                # A stop that came before it has ended a machine that knows of nothing.
                return [] if self._stopping else self._machine.begin(read, at)
            case Expect(nonce):
                self._machine.expect(nonce)
            case Registered(session):
                return self._machine.registered(session, at)
            case RegisterFailed(after, error):
                displaced = isinstance(error, DisplacedError | NodeIdConflictError)
                return self._machine.register_failed(after, error, displaced, at)
        return []

    def _carry_out(self, effect: fx.Effect) -> None:
        match effect:
            case StartJobs(jobs):
                self._executors.start(jobs)
            case fx.Publish(snapshot):
                self._publish(snapshot)
                self.lookup.follow(snapshot)
            case CancelJob(job_id, reason):
                self._executors.cancel(job_id, reason)
            case HookSlow(job):
                logger.warning(
                    "hook %s is slow; it stands here:\n%s",
                    job.spec.name,
                    self._executors.where(job.id) or "(its stack cannot be told)",
                    extra={"ck_event_id": job.event.event_id},
                )
            case RebalanceCompleted():
                self._measure.rebalance_ended(effect)
            case HookTimedOut(job):
                self._measure.timed_out(effect)
                logger.error(
                    "hook %s is out of time after %s s and counts as failed; it stands here:\n%s",
                    job.spec.name,
                    job.timeout,
                    self._executors.where(job.id) or "(its stack cannot be told)",
                    extra={"ck_event_id": job.event.event_id},
                )
            case fx.Note(level, message, args, extra):
                logger.log(level, message, *args, extra=dict(extra))
            case fx.WriteReceipt():
                if self._errands is not None:
                    self._errands.receipt(effect)
            case fx.WriteAlive():
                if self._errands is not None:
                    self._errands.alive(effect)
            case CloseHistory():
                if self._errands is not None:
                    self._errands.close_history(effect)
            case PruneHistory():
                if self._errands is not None:
                    self._errands.prune_history(effect)
            case ReadView(number):
                if self._errands is not None:
                    self._errands.read_view(lambda read: self._queue.put(Read(read, number)))
            case fx.ReadAgain(reason):
                if self._watcher is not None:
                    self._watcher.read_again(reason)
            case fx.Register():
                self._presence.register(effect)
            case fx.Drop(session, slot):
                self._presence.drop(session)
                if self._errands is not None:
                    self._errands.revoke(session, slot=slot)

    def _publish(self, snapshot: Snapshot) -> None:
        last, self.snapshot = self.snapshot, snapshot
        if last is None or last.view.revision != snapshot.view.revision:
            self.view_since = self._clock.monotonic()

    def _stop(self, message: Stop) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._presence.cancel()
        self._note_held()
        if self.failure is None:
            at = fx.Instant(self._clock.monotonic(), self._clock.now())
            try:
                for effect in self._machine.stopping(at):
                    self._carry_out(effect)
            except Exception as e:
                self._break_down(e)
        try:
            leaver = threading.Thread(
                target=self._leave, args=(message.timeout,), name="clusterkit-stop", daemon=True
            )
            leaver.start()
            self._leaver = leaver
        except RuntimeError as e:
            # The interpreter ends: what leaves at its exit does the rest.
            logger.debug("no thread can be started to leave on: %s", e)
            self._queue.put(Finished())

    def _note_held(self) -> None:
        if self.snapshot is not None and self._profile is not None:
            owned, replica = held_by(self._profile.node_id, self.snapshot.rows)
            self._held = tuple(sorted((*owned, *replica)))

    def _check_waiting(self) -> None:
        if not self._waiting or (snapshot := self.snapshot) is None:
            return
        still: list[Await] = []
        for waiting in self._waiting:
            if waiting.future.cancelled():
                continue
            if waiting.predicate(snapshot):
                _set(waiting.future)
            else:
                still.append(waiting)
        self._waiting = still

    def _finish(self) -> None:
        self._measure.close()
        if self.snapshot is not None:
            self.snapshot = replace(self.snapshot, kit_state=KitState.STOPPED, session=None)
        self._dismiss()
        _set(self.ended)
        for waiting in self._waiting:
            self._fail(waiting)
        while True:
            try:
                message = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(message, Await):
                self._fail(message)

    def _dismiss(self) -> None:
        if self._attendant is not None:
            try:
                self._attendant.close()
            except Exception:  # whatever it is, the run has to end
                logger.exception("what was to end with the run failed to")

    def _fail(self, waiting: Await) -> None:
        # It may have been cancelled, or failed by another thread, in between.
        with contextlib.suppress(InvalidStateError):
            waiting.future.set_exception(self._stopped())

    def _stopped(self) -> KitStateError:
        why = f": {self.failure}" if self.failure is not None else ""
        return KitStateError(f"the kit has stopped{why}", state=KitState.STOPPED)


def _set(future: Future[None]) -> None:
    with contextlib.suppress(InvalidStateError):
        future.set_result(None)


_running: weakref.WeakSet[Runner] = weakref.WeakSet()


def _after_fork() -> None:
    for runner in list(_running):
        runner.forget_parent()


def _at_exit() -> None:
    """Whoever ends without ``stop()`` leaves all the same: nobody shall wait for its lease."""
    end = time.monotonic() + _EXIT_SECONDS
    for runner in list(_running):
        runner.leave_at_exit(max(0.1, end - time.monotonic()))


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
