"""The commands: what they are called with, and how whatever goes wrong is said in one line.

Exit codes: 0 success, 1 the operation failed, 2 wrong usage or an option that cannot work,
130 ended by Ctrl-C. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from clusterkit._compose import (
    administration,
    plan_of,
    read_cluster,
    read_layout,
    remove_node,
)
from clusterkit.config import Options, balance_percent_of
from clusterkit.core.forecast import Alteration
from clusterkit.errors import ClusterKitError, OptionError
from clusterkit.hooks import Hooks

from . import etcd_server, planning, render
from .connection import connection_options
from .demo.cluster import Settings
from .demo.driver import Demo
from .demo.report import HumanReport, JsonReport
from .log import PlainFormatter
from .observer import Observer
from .records import describe, record_all

app = typer.Typer(
    name="clusterkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="See what a ClusterKit cluster is doing, and try one out on this machine.",
    epilog="What is not given as an option comes from CLUSTERKIT_... variables.",
)

PIPE_COLUMNS: Final = 240

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def run() -> int:
    """Runs the command that the arguments name; the exit code."""
    try:
        app()
    except KeyboardInterrupt:
        return 130
    except OptionError as error:
        return _complain(error, 2)
    except ClusterKitError as error:
        return _complain(error, 1)
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(error, 1)
    except Exception as error:
        logging.getLogger(__name__).debug("defect", exc_info=error)
        return _complain(f"a defect, please report it: {type(error).__name__}: {error}", 1)
    return 0


def _complain(what: object, code: int) -> int:
    print(f"clusterkit: {what}", file=sys.stderr)
    return code


@app.callback()
def common(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log all that is done, with tracebacks.")
    ] = False,
) -> None:
    """Sets up logging, which is the same for all commands."""
    handler = logging.StreamHandler()
    if not verbose:
        handler.setFormatter(PlainFormatter())
    logger = logging.getLogger("clusterkit")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


@app.command()
def etcd(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port for clients; 0 is any free one.")
    ] = 2379,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where to keep the data; else it is gone afterwards.")
    ] = None,
) -> None:
    """Run a single etcd on this machine, for trials and tests, until Ctrl-C."""
    etcd_server.serve(port, data_dir)


@app.command()
@connection_options
def nodes(options: Options, as_json: AsJson = False) -> None:
    """List the nodes of a cluster."""
    view, cordons = read_cluster(options)
    if as_json:
        _print_json(render.nodes_document(options.cluster, view, cordons))
    else:
        _console().print(render.nodes_table(options.cluster, view, cordons))


@app.command()
@connection_options
def partitions(
    options: Options,
    node: Annotated[str | None, typer.Option(help="Only the partitions of this node.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the partitions of a cluster, with their holders."""
    view, _ = read_cluster(options)
    if node is not None and node not in view.nodes:
        members = ", ".join(view.nodes) or "nobody"
        raise ClusterKitError(
            f"{node!r} is no node of the cluster {options.cluster!r}; its nodes are: {members}"
        )
    if as_json:
        _print_json(render.partitions_document(options.cluster, view, node))
    else:
        _console().print(render.partitions_table(options.cluster, view, node))


@app.command()
@connection_options
def remove(
    options: Options,
    node: Annotated[str, typer.Argument(help="The node's id, as 'nodes' lists it.")],
    as_json: AsJson = False,
) -> None:
    """Remove a node from a cluster. Its process, if it runs, owns nothing more and stays out."""
    removal = remove_node(options, node)
    if as_json:
        _print_json(render.removal_document(options.cluster, removal))
    else:
        print(
            f"removed {removal.node.id} at {removal.node.address} from {options.cluster}: it held "
            f"{len(removal.partitions)} partitions"
        )


@app.command()
@connection_options
def cordon(
    options: Options,
    node: Annotated[str, typer.Argument(help="The node's id, as 'nodes' lists it.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever looks later.")] = "",
    as_json: AsJson = False,
) -> None:
    """Have a node hold nothing, also after a restart. Its partitions move to the others."""
    with administration(options) as admin:
        done = admin.cordon(node, reason)
    if as_json:
        _print_json(render.cordon_document(options.cluster, node, True, done))
    else:
        print(f"{node} is cordoned" + ("" if done.changed else " already"))
    if (warning := render.few_holders(done)) is not None:
        print(f"warning: {warning}", file=sys.stderr)


@app.command()
@connection_options
def uncordon(
    options: Options,
    node: Annotated[str, typer.Argument(help="The node's id.")],
    as_json: AsJson = False,
) -> None:
    """Let a node that was cordoned hold partitions again."""
    with administration(options) as admin:
        done = admin.uncordon(node)
    if as_json:
        _print_json(render.cordon_document(options.cluster, node, False, done))
    else:
        print(f"{node} is " + ("not cordoned any more" if done.changed else "not cordoned"))


@app.command()
@connection_options
def settings(
    options: Options,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many nodes hold each partition.")
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="No node above so many times its fair share, such as 1.25; or none."),
    ] = None,
    balance_primaries: Annotated[
        bool | None,
        typer.Option(
            "--balance-primaries/--no-balance-primaries",
            help="Even the primaries out among the holders.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how a cluster places its partitions, and change what is named. All nodes follow."""
    percent = None if balance is None else balance_percent_of(balance)
    with administration(options) as admin:
        done = admin.settings(
            replication_factor=replication_factor,
            balance_percent=percent,
            balance_primaries=balance_primaries,
        )
    if as_json:
        _print_json(render.settings_document(options.cluster, done))
    else:
        print(render.settings_lines(options.cluster, done))


@app.command()
@connection_options
def plan(
    options: Options,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="NODE[,weight=W][,zone=Z]", help="A node that would join."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A node that would leave.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NODE=W", help="Another weight.")
    ] = None,
    cordon: Annotated[list[str] | None, typer.Option(help="One that would hold nothing.")] = None,
    uncordon: Annotated[list[str] | None, typer.Option(help="One that might again.")] = None,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, max=64, help="How many nodes would hold each partition.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(help="The bound there would be, such as 1.25; or none.")
    ] = None,
    balance_primaries: Annotated[
        bool | None,
        typer.Option(
            "--balance-primaries/--no-balance-primaries", help="Whether primaries would be even."
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(min=0, max=5000, help="Plan a made-up cluster of so many nodes, offline."),
    ] = None,
    zones: Annotated[int, typer.Option(min=0, help="The zones of a made-up cluster.")] = 0,
    every_move: Annotated[bool, typer.Option("--all", help="Show every move.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a change of nodes or settings would move. Nothing is changed.

    With --nodes it is about a made-up cluster of node-0, node-1 and so on, and etcd is not asked:
    CLUSTERKIT_PARTITIONS and CLUSTERKIT_REPLICATION_FACTOR say how large it is.
    """
    percent = None if balance is None else balance_percent_of(balance)
    if nodes is None:
        layout = read_layout(options)
    else:
        layout = planning.made_up(
            nodes,
            zones=zones,
            partitions=options.partitions,
            replication_factor=options.replication_factor,
            balance_percent=round((options.balance or 0) * 100),
            balance_primaries=options.balance_primaries,
        )
    change = Alteration(
        add=planning.planned_nodes(add or ()),
        remove=remove or (),
        weights=planning.weights(weight or ()),
        cordon=cordon or (),
        uncordon=uncordon or (),
        replication_factor=replication_factor,
        balance_percent=percent,
        balance_primaries=balance_primaries,
    )
    found = plan_of(layout, change)
    cluster = options.cluster if nodes is None else None
    if as_json:
        _print_json(planning.document(cluster, found))
    else:
        _console().print(planning.tables(cluster, found, every_move=every_move))


@app.command()
@connection_options
def watch(options: Options, as_json: AsJson = False) -> None:
    """Print what happens in a cluster, as it happens, until Ctrl-C. Joins nothing."""
    records: SimpleQueue[dict[str, Any]] = SimpleQueue()
    hooks = Hooks()
    record_all(hooks, "watch", records.put)
    with Observer(options, hooks) as kit:
        print(
            f"watching the cluster {options.cluster!r} from revision {kit.cluster.revision} on",
            file=sys.stderr,
        )
        while True:
            record = records.get()
            if as_json:
                _print_json(record)
            else:
                when = datetime.fromisoformat(record["timestamp"])
                print(f"{when:%H:%M:%S}  {record['event']:<22}{describe(record)}")
            sys.stdout.flush()


@app.command()
def demo(
    as_json: AsJson = False,
    without_hooks: Annotated[
        bool,
        typer.Option("--without-hooks", help="The control: nothing migrates, so keys are lost."),
    ] = False,
    keys: Annotated[int, typer.Option(min=1, help="How many keys to write.")] = 1000,
    # With fewer, a node might by chance hold none, and its coming and going would move nothing.
    partitions: Annotated[int, typer.Option(min=16, max=4096, help="How many shards.")] = 32,
) -> None:
    """Show a cluster of processes at work: joins, a kill, a return, a stop, and no key lost."""
    settings = Settings(keys=keys, partitions=partitions, without_hooks=without_hooks)
    report = JsonReport() if as_json else HumanReport(_console())
    story = Demo(settings, report)
    try:
        summary = story.run()
    finally:
        report.close()
    report.summary(summary)
    if not summary.passed:
        print(f"clusterkit: not as it should be; the logs are in {story.logs}", file=sys.stderr)
        raise typer.Exit(1)


def _console() -> Console:
    # Into a pipe or a file nothing needs to be cut off at the width of a screen.
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def _print_json(document: object) -> None:
    print(json.dumps(document))
