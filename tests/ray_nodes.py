"""Ray's nodes that stand for machines: each has an address and a home of its own.

python -m tests.ray_nodes CPUS HOME... prints the address of the head, which runs no task, and holds all until its
standard input ends.
"""

import sys

from ray.cluster_utils import Cluster
from ray.util import get_node_ip_address


def main() -> None:
    cpus, *homes = sys.argv[1:]
    cluster = Cluster()
    # A driver takes 127.0.0.1 for this machine's own address and joins the node there: none of those to be killed.
    cluster.add_node(num_cpus=0, node_ip_address=get_node_ip_address(), include_dashboard=False)
    for number, home in enumerate(homes, 2):
        cluster.add_node(
            num_cpus=int(cpus), node_ip_address=f"127.0.0.{number}", env_vars={"MEDGEN_HOME": home}, wait=False
        )
    cluster.wait_for_nodes()
    sys.stdout.write(f"127.0.0.1:{cluster.address.rpartition(':')[2]}\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
