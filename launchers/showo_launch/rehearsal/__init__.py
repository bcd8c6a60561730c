"""Several hosts on one Linux machine, to rehearse a launch on a cluster."""

from showo_launch.rehearsal.cluster import HOSTFILE, SHARED, Cluster
from showo_launch.rehearsal.network import Link
from showo_launch.rehearsal.programs import missing_requirement

__all__ = ["HOSTFILE", "SHARED", "Cluster", "Link", "missing_requirement"]
