"""Several hosts on one Linux machine, to rehearse what will run on a real cluster."""

from showo_launch.hostfile import read_hostfile
from showo_launch.rehearsal.cluster import HOSTFILE, SHARED, Cluster
from showo_launch.rehearsal.network import Link
from showo_launch.rehearsal.programs import what_is_missing

__all__ = ["HOSTFILE", "SHARED", "Cluster", "Link", "read_hostfile", "what_is_missing"]
