"""Prints, at the end, which test caught which mutation."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    caught = sorted(
        (str(value[0]), str(value[1]))
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in getattr(report, "user_properties", [])
        if name == "mutation" and report.when == "call"
    )
    if caught:
        terminalreporter.section("mutations and what caught them")
        width = max(len(mutation) for mutation, _ in caught)
        for mutation, test in caught:
            terminalreporter.line(f"{mutation:<{width}}  {test}")
