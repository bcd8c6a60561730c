"""Launching on hosts: hostfiles, checks before a run, restarts, and clusters rehearsed on one machine."""
