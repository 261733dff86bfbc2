"""Which tools run a NIR file exactly, differently or not at all: rules, and the tools themselves.

``rules`` has, for every tool, what was seen of one version of it; ``check`` applies them to a file.
``run`` makes the environment of a tool and runs the file in it, which is how the tests hold every
rule against the tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stl_deploy.backends.consumers.file import File
from stl_deploy.backends.consumers.rules import CONSUMERS, Consumer, Verdict
from stl_deploy.errors import InputError, Problem


@dataclass(frozen=True)
class Reason:
    """A rule that holds for a file, the nodes that it holds for, and the names of what it is about."""

    verdict: Verdict
    why: str
    nodes: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule in words, with names."""
        return f"{self.why}: {', '.join(self.names)}" if self.names else self.why


@dataclass(frozen=True)
class Answer:
    """What becomes of a file in one tool; the gravest reason decides.

    ``contradicted`` says that a run came out worse than the rules have it.
    """

    consumer: Consumer
    verdict: Verdict
    reasons: tuple[Reason, ...]
    contradicted: bool = False

    def after(self, error: str | None, counts: Mapping[str, int] | None) -> Answer:
        """The answer once the tool has run the file: what was seen counts before the rules.

        Args:
            error: what the tool raised, None where it ran.
            counts: by spiking node, the entries that differ; None where they cannot be compared.
        """
        if error is not None:
            seen = Reason(Verdict.UNREADABLE, f"this run failed: {error}", ())
        elif counts is None:
            why = "what comes out in this run are not the values of the graph's output"
            seen = Reason(Verdict.DIFFERS, why, ())
        elif any(counts.values()):
            why = f"{sum(counts.values()):,} spikes differ"
            seen = Reason(Verdict.DIFFERS, why, tuple(n for n, wrong in counts.items() if wrong))
        else:
            return self
        order = list(Verdict)
        if order.index(seen.verdict) <= order.index(self.verdict):
            return self
        against = self.verdict != Verdict.UNKNOWN
        if against:
            seen = replace(seen, why=f"{seen.why}, against the rules")
        return replace(
            self,
            verdict=seen.verdict,
            reasons=(seen, *self.reasons),
            contradicted=against,
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of ``stl-check --json``."""
        return {
            "name": self.consumer.name,
            "version": self.consumer.version,
            "verdict": self.verdict.value,
            "seen": self.consumer.seen,
            "call": self.consumer.call,
            "reasons": [
                {
                    "verdict": r.verdict.value,
                    "why": r.why,
                    "nodes": list(r.nodes),
                    "names": list(r.names),
                }
                for r in self.reasons
            ],
        }


def check(file: File, consumers: Iterable[Consumer] = CONSUMERS.values()) -> list[Answer]:
    """What becomes of ``file`` in every tool. Raises InputError for invalid nodes."""
    try:
        with np.errstate(all="ignore"):  # a tau of 0 and the like
            return [_answer(file, consumer) for consumer in consumers]
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        # What shapes and types from a broken file can do to arithmetic on them.
        raise InputError(
            Problem(str(file.path), f"contains an invalid node: {error}", "write it again")
        ) from None


def markdown(consumers: Mapping[str, Consumer] = CONSUMERS) -> str:
    """All rules as a table for each tool (docs/nir.md)."""
    parts = []
    for consumer in consumers.values():
        seen = "run by the tests" if consumer.seen == "run" else "read in its source, not run"
        lines = [f"**{consumer.title} {consumer.version}** ({seen}): `{consumer.call}`", ""]
        lines += ["| where | what happens |", "| --- | --- |"]
        lines += [f"| {WORDS[rule.verdict]} | {rule.why} |" for rule in consumer.rules]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


WORDS = {
    Verdict.EXACT: "exactly, but mind",
    Verdict.UNKNOWN: "not tried",
    Verdict.DIFFERS: "differently",
    Verdict.UNREADABLE: "cannot read",
}


def _answer(file: File, consumer: Consumer) -> Answer:
    reasons = []
    for rule in consumer.rules:
        if nodes := tuple(rule.where(file)):
            reasons.append(Reason(rule.verdict, rule.why, nodes, tuple(rule.names(file))))
    order = list(Verdict)
    worst = max((r.verdict for r in reasons), key=order.index, default=Verdict.EXACT)
    return Answer(consumer, worst, tuple(sorted(reasons, key=lambda r: -order.index(r.verdict))))
