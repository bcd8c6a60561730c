"""The base of every command: ranks, number format, random generators, and how a run exits."""
