"""`dimat check task PATH`: run the checks of `dimat.tasks.check` and say what they found.

torch is imported by the check alone, so that the command line's help need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dimat.errors import EXIT_DONE, EXIT_USAGE

if TYPE_CHECKING:
    from dimat.tasks import Finding

_MARKS = {"ok": "ok      ", "warning": "WARNING ", "problem": "PROBLEM "}


def check(reference: str, **arguments: Any) -> list[Finding]:
    """The findings on the task that `reference` names; `arguments` are those of `dimat.tasks.check_task`."""
    from dimat.tasks import check_task

    return check_task(reference, **arguments)


def as_text(reference: str, findings: Sequence[Finding]) -> str:
    """A line per finding, with its cure below it, and a last line that sums up."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]} {finding.check:<{width}}  {finding.message}")
        if finding.cure:
            lines.append(f"{'':{len(_MARKS['ok']) + width + 1}}  -> {finding.cure}")
    counts = _counts(findings)
    verdict = "cannot run yet" if counts["problem"] else "can run"
    lines.append(
        f"{reference} {verdict}: {counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems"
    )
    return "\n".join(lines)


def as_json(reference: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """{task, ok, findings: [{check, status, message, cure}]}."""
    return {
        "task": reference,
        "ok": not _counts(findings)["problem"],
        "findings": [{"check": f.check, "status": f.status, "message": f.message, "cure": f.cure} for f in findings],
    }


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when the task can run, 2 when there is a problem; warnings do not count."""
    return EXIT_USAGE if _counts(findings)["problem"] else EXIT_DONE


def _counts(findings: Sequence[Finding]) -> Mapping[str, int]:
    return {status: sum(finding.status == status for finding in findings) for status in _MARKS}
