"""The tables, as data: one module for each paper.

A row whose method does not exist yet is left out and listed as not available.
"""

from __future__ import annotations

from adaptpo.sandbox.tables.definitions import metaapo, metapo, stages
from adaptpo.sandbox.tables.table import Table

TABLES: dict[str, Table] = metaapo.TABLES | metapo.TABLES | stages.TABLES
