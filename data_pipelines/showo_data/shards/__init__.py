"""WebDataset tar shards: writing them, their index, and reading single members by byte offset."""

from showo_data.shards.files import OpenShards
from showo_data.shards.index import (
    Member,
    ShardHeader,
    ShardTable,
    build_index,
    index_path,
    load_index,
    load_table,
    verify,
)
from showo_data.shards.names import expand
from showo_data.shards.writing import write_shard

__all__ = [
    "Member",
    "OpenShards",
    "ShardHeader",
    "ShardTable",
    "build_index",
    "expand",
    "index_path",
    "load_index",
    "load_table",
    "verify",
    "write_shard",
]
