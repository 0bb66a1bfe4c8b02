"""Results: a table for the terminal, JSON, and (in `llfc_core.report.page`) a page to look at."""

from llfc_core.report.results import ResultsError, read_results, write_results
from llfc_core.report.table import claims_matrix, claims_table

__all__ = ["ResultsError", "claims_matrix", "claims_table", "read_results", "write_results"]
