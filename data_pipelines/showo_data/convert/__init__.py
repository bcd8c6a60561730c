"""Convert the data sets of Show-o and RecA to shards: streamed, resumable, images copied byte for byte."""

from showo_data.convert.edits import edit_items
from showo_data.convert.imagenet import imagenet_items
from showo_data.convert.images import folder_items, image_items
from showo_data.convert.interleaved import interleaved_items
from showo_data.convert.items import Item
from showo_data.convert.llava import llava_items
from showo_data.convert.recaption import recaptioned_items
from showo_data.convert.text import text_items
from showo_data.convert.writing import Report, Target, convert

__all__ = [
    "Item",
    "Report",
    "Target",
    "convert",
    "edit_items",
    "folder_items",
    "image_items",
    "imagenet_items",
    "interleaved_items",
    "llava_items",
    "recaptioned_items",
    "text_items",
]
