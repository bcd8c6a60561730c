"""Several hosts on one Linux machine, to rehearse what will run on a real cluster."""

from showo_dist.rehearsal.cluster import HOSTFILE, SHARED, Cluster
from showo_dist.rehearsal.hostfile import read_hostfile
from showo_dist.rehearsal.network import Link
from showo_dist.rehearsal.programs import what_is_missing

__all__ = ["HOSTFILE", "SHARED", "Cluster", "Link", "read_hostfile", "what_is_missing"]
