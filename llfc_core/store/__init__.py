"""A directory of checked, content-addressed entries that survives kills, races and bad disks."""

from llfc_core.store.entry import CorruptEntry, Entry
from llfc_core.store.store import Store, StoreError

__all__ = ["CorruptEntry", "Entry", "Store", "StoreError"]
