#!/usr/bin/env python3
"""A Ray cluster of several nodes on this machine, for as long as stdin is open: prints its address; a line `kill` kills a node.

    echo | python3 bench/nodes.py 3
"""

import os
import sys

from turns import REPO  # sets up the path to the suite

from tsm.infer.cluster import ENVIRONMENT, MEMORY
from tsm.machine import cores


def main() -> None:
    count = int(sys.argv[1])
    os.environ.update(ENVIRONMENT)
    os.environ["PYTHONPATH"] = REPO
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY})
    nodes = [cluster.add_node(num_cpus=max(1, cores() // count), object_store_memory=MEMORY) for _ in range(count)]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
