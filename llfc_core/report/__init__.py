"""Results as a table for the terminal and as JSON."""

from llfc_core.report.results import write_results
from llfc_core.report.table import claims_matrix, claims_table

__all__ = ["claims_matrix", "claims_table", "write_results"]
