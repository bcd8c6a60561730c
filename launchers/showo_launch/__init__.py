"""Hosts: hostfiles, checks before a run, restarts, and clusters rehearsed on one machine."""
