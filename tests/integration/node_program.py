"""A node to be killed: joins with the options of its one argument, stops when stdin ends."""

from __future__ import annotations

import json
import sys

from clusterkit import ClusterKitError
from clusterkit.sync import ClusterKit


def main() -> int:
    kit = ClusterKit(**json.loads(sys.argv[1]))
    try:
        kit.start()
    except ClusterKitError as e:
        print(type(e).__name__, e, flush=True)
        return 1
    print("joined", flush=True)
    sys.stdin.read()
    kit.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
