"""Exit codes of a run: set by its ranks, read by the supervisor and the Slurm script."""

DONE = 0
MACHINE_ERROR = 1  # a fault of the machine, or an unexpected error; starting again may help
USER_ERROR = 2  # the config, a file or the command line has to be changed
# Stopped on request after a checkpoint; the same command resumes (EX_TEMPFAIL of sysexits.h).
PREEMPTED = 75
RANK_LOST = 76  # another rank died, failed or hangs; resuming from the last checkpoint may help
NON_FINITE = 77  # too many non-finite steps in a row; the same command would end the same way

# Environment variable: the folder where ranks leave their exit codes for a supervisor, because not
# every launcher passes on the exit code of a rank.
REPORTS = "SHOWO_DIST_REPORTS"
