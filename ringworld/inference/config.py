"""The room of an engine, and what it tells of itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The room of an engine."""

    cache_bytes: int
    """the most bytes of keys and values, over all devices of the ring"""
    rows: int
    """rows that are read and written at one time; a guided answer takes two"""
    page: int
    """tokens of a page on each device of the ring: what is shared, and read at one time"""
    int8: bool = False
    """keep keys and values as int8 with a scale for each token and head"""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What an engine holds and has done."""

    waiting: int
    """samples that wait for room"""
    running: int
    """rows that are read or written"""
    pages_read: int
    """pages that a row reads"""
    pages_kept: int
    """pages without a reader that a later request may find"""
    most_pages: int
    """pages that the pool may have"""
    bytes: int
    """bytes of the pool"""
    computed: int
    """tokens of prompts that were read"""
    reused: int
    """tokens of prompts that kept pages spared"""
    evicted: int
    """kept pages that went to make room"""
