"""WebDataset tar shards: write them, index them, and read single members by byte offset."""

from showo_data.shards.cache import open_whole
from showo_data.shards.files import OpenShards
from showo_data.shards.foreign import NotATarError, refuse_foreign, refuse_without_samples
from showo_data.shards.index import (
    ShardHeader,
    build_index,
    index_path,
    load_index,
    load_table,
    samples_of,
    verify,
    write_shard,
)
from showo_data.shards.names import expand
from showo_data.shards.storage import Storage, UnreadableShardError
from showo_data.shards.tables import (
    DAMAGED,
    LINK,
    SPARSE,
    Member,
    ShardTable,
    scan,
    tar_files,
)

__all__ = [
    "DAMAGED",
    "LINK",
    "SPARSE",
    "Member",
    "NotATarError",
    "OpenShards",
    "ShardHeader",
    "ShardTable",
    "Storage",
    "UnreadableShardError",
    "build_index",
    "expand",
    "index_path",
    "load_index",
    "load_table",
    "open_whole",
    "refuse_foreign",
    "refuse_without_samples",
    "samples_of",
    "scan",
    "tar_files",
    "verify",
    "write_shard",
]
