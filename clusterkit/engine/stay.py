"""This node's own stay in the cluster: joined, in doubt, lost, displaced, and fenced meanwhile.

The view says who is a member, the keep-alive thread whether the lease is alive, and the joiner what
became of a join. Here the three come together: in doubt the node is fenced; a stay that is lost is
followed by a new join; one that was ended by somebody else's will is not.
"""

from __future__ import annotations

from ..core.membership import Change, Left, Rejoined, State
from ..core.records import EndReason
from ..errors import KitStateError, StoreError
from ..events import FencedEvent, UnfencedEvent
from ..model import KitState
from .delivery import Delivery
from .effects import DEBUG, ERROR, WARNING, Drop, Instant, Outbox, Register
from .session import LeaseDoubted, LeaseLost, LeaseNews, Session

_FIRST_REGISTER, _LAST_REGISTER = 0.5, 2.0
_OPERATOR_SECONDS = 30.0


class Stay:
    """The stay of one process, and those before and after it. See ``KitState`` for its states.

    Attributes:
        state: The state of the kit.
        session: The session, None while there is none that can be counted on.
        expected: The nonce of the newest join of this process.
        live: Whether this node's own join has been seen: only then are there events.
        doubted: Whether the session's lease cannot be proven to be alive.
        fenced_news: What was told of the fencing that lasts; None while not fenced.
    """

    def __init__(
        self, delivery: Delivery, out: Outbox, *, node_id: str, incarnation: str, observer: bool
    ) -> None:
        self._delivery = delivery
        self._out = out
        self._me = node_id
        self._incarnation = incarnation
        self._observer = observer
        self.state = KitState.JOINING
        self.session: Session | None = None
        self.expected: str | None = None
        self.live = False
        self.doubted = False
        self.fenced_news: FencedEvent | None = None
        self._fencings = 0  # so far: a node may be fenced twice in one revision
        self._joined_as: str | None = None  # the nonce that this node was last joined with
        self._register_after = _FIRST_REGISTER

    # -- what it is told ---------------------------------------------------------------------

    def observe(self) -> None:
        """An observer is where it wants to be as soon as it has read the cluster."""
        if self._observer:
            self.live = True
            self.state = KitState.JOINED

    def begin(self, session: Session) -> None:
        """The join was applied. The view may have it already, or will."""
        self.session = session
        self.expected = session.nonce  # an earlier one, if its slot was still held
        self.doubted = False
        self._register_after = _FIRST_REGISTER
        if self.state is KitState.REMOVED:
            self.state = KitState.FENCED  # somebody asked for it; until the view has it

    def register_failed(self, after: str, error: Exception, displaced: bool) -> None:
        """Joining again failed; it is tried again unless somebody else's will is against it."""
        if displaced:
            self.state = KitState.REMOVED
            self._out.note(ERROR, "this node stays out of the cluster: %s", error)
            return
        if isinstance(error, KitStateError):
            return  # given up, since the kit is stopping
        if not isinstance(error, StoreError):
            # A config that does not fit, say. It may be that of a wrong etcd for a while, so the
            # node does not give up for good; but it takes somebody to act, who has to hear of it.
            self._out.note(
                ERROR,
                "this node cannot join again, owns nothing, and will try every %d s until this is "
                "mended: %s",
                _OPERATOR_SECONDS,
                error,
            )
            self._out.add(Register(after, _OPERATOR_SECONDS))
            return
        first = self._register_after == _FIRST_REGISTER
        self._out.note(
            WARNING if first else DEBUG,  # once an outage
            "joining again failed and will be retried: %s",
            error,
        )
        self._out.add(Register(after, self._register_after))
        self._register_after = min(self._register_after * 2, _LAST_REGISTER)

    def lease(self, news: LeaseNews, at: Instant) -> None:
        """The keep-alive thread's news."""
        if self.session is None or news.session is not self.session:
            return
        match news:
            case LeaseLost(_, reason):
                self._lost(reason, at)
            case LeaseDoubted(_, reason):
                self.doubted = True
                self._fence(f"no keep-alive was answered in time: {reason}", at)
            case _:
                self.doubted = False

    def leave(self) -> None:
        """The application wants to leave: nothing is owned from here on."""
        self.state = KitState.DRAINING
        self.session = None
        self.live = False

    def see_join(self, state: State) -> None:
        """From its own join on a node is told of what happens."""
        if self.live or self.expected is None or self.state is KitState.DRAINING:
            return
        me = state.members.get(self._me)
        self.live = me is not None and me.nonce == self.expected

    def see(self, change: Change, at: Instant) -> None:
        """What a change means for this node's own stay."""
        session = self.session
        if session is None or not isinstance(change, Left | Rejoined):
            return
        if change.record.node.id != self._me:
            return
        if isinstance(change, Left) and change.record.nonce == session.nonce:
            self._ended(change.reason, at)
        elif (
            isinstance(change, Rejoined)
            and change.record.nonce not in (session.nonce, self.expected)
            # A view that is behind may show who had the place before, perhaps this process itself.
            and self._delivery.revision > session.revision
        ):
            self._ended("replaced", at)

    def see_sign_of_life(self, old: State, new: State, at: Instant) -> None:
        """If the own sign of life went, the lease did, whatever the keep-alives were told."""
        session, sign = self.session, (self._me, self._incarnation)
        if session is None or new.revision <= session.revision:
            return
        if sign in old.alive and sign not in new.alive:
            self._lost("this node's sign of life was seen to go", at)

    def see_past(self, state: State, at: Instant) -> None:
        """The view may be past the end of a stay whose session came only now."""
        session, past = self.session, state.history.get(self._me)
        if session is None or past is None:
            return
        if (end := past.end_of(session.nonce)) is not None:
            self._ended(end.reason, at)
        elif (
            past.open is not None
            and past.open.nonce == session.nonce
            and self._me not in state.members
        ):
            self._ended("health_check_failure", at)  # nobody wrote why

    def restored(self, state: State, at: Instant) -> None:
        """Another etcd answers, or one with data of the past: does it know of this stay?

        What it has in its place says nothing of another's will. It may be a stay of long ago.
        """
        session = self.session
        if session is None:
            return
        me = state.members.get(self._me)
        same = me is not None and me.nonce == session.nonce and state.is_alive(self._me)
        if not same or session.revision > state.revision:
            self._lost("etcd has lost this stay: it was restored from a backup, or replaced", at)

    def follow(self, state: State, at: Instant) -> None:
        """The state of the kit, once everything else of a step is known."""
        session = self.registered(state)
        if session is not None:
            if self.state is not KitState.DRAINING:
                self.state = KitState.FENCED if self.doubted else KitState.JOINED
            if not self.doubted:
                self._unfence(session, at)
            self._joined_as = session.nonce
        elif self.state is KitState.JOINED and not self._observer:
            self.state = KitState.FENCED

    # -- what it tells -----------------------------------------------------------------------

    def registered(self, state: State) -> Session | None:
        """The session, if the view has its registration in it."""
        session, me = self.session, state.members.get(self._me)
        if session is None or me is None or me.nonce != session.nonce:
            return None
        return session if state.revision >= session.revision else None

    def is_mine(self, state: State) -> bool:
        """Whether the member with this node's id is this process, not one before or after it."""
        me = state.members.get(self._me)
        return me is not None and me.nonce in (self.expected, self._joined_as)

    def fenced(self, state: State) -> bool:
        """Whether this node has joined and may own nothing now."""
        # A node sees its own join before it knows that the join was applied: no reason to worry.
        waiting = self.registered(state) is None and self.state is not KitState.JOINING
        return self.live and not self._observer and (self.doubted or waiting)

    # -- the ends of a stay ------------------------------------------------------------------

    def _ended(self, reason: EndReason, at: Instant) -> None:
        """This node's present stay is over, and not because it left."""
        match reason:
            case "removed_by_admin":
                self._displaced(
                    "an administrator removed this node; call rejoin() or restart it", at
                )
            case "replaced":
                self._displaced("another process has taken over this node's id", at)
            case _:
                self._lost("this node's key was seen to go", at)

    def _lost(self, reason: str, at: Instant) -> None:
        session = self.session
        if session is None:
            return
        session.lose()
        self.session = None
        self._fence(reason, at)
        self._out.add(Drop(session, slot=False), Register(session.nonce, 0.0))

    def _displaced(self, reason: str, at: Instant) -> None:
        session = self.session
        if session is None:
            return
        session.lose()
        self.session = None
        self.state = KitState.REMOVED
        self._fence(reason, at)
        self._out.add(Drop(session, slot=True))

    def _fence(self, reason: str, at: Instant) -> None:
        if self.fenced_news is not None or not self.live:
            return
        self._out.note(WARNING, "fenced: this node owns nothing until further notice: %s", reason)
        self._fencings += 1
        event = FencedEvent(
            timestamp=at.wall,
            revision=self._delivery.revision,
            event_id=f"fenced/{self._me}/{self.expected}/{self._fencings}",
            reason=reason,
        )
        self.fenced_news = event
        self._delivery.news("fenced", event, at)

    def _unfence(self, session: Session, at: Instant) -> None:
        if self.fenced_news is None:
            return
        self.fenced_news = None
        self._out.note(WARNING, "no longer fenced: the lease is proven to be alive")
        event = UnfencedEvent(
            timestamp=at.wall,
            revision=self._delivery.revision,
            event_id=f"unfenced/{self._me}/{session.nonce}/{self._fencings}",
            rejoined=session.nonce != self._joined_as,
        )
        self._delivery.news("unfenced", event, at)
