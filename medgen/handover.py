"""Typed hand-over: how a step reads what an earlier one put into its record.

A record's detail is JSON in the catalog. Each step declares its shape beside its parameters, as TypedDicts, and others
read it through that declaration, so that a type checker sees a wrong key:

    CUT: Handover[CutDetail, CutOutputs] = Handover("cut")

    def work_of(item: Item, past: Mapping[str, Record]) -> Work:
        fps = CUT.detail(past)["clip"]["fps"]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, cast

from typing_extensions import TypeVar

from medgen.ledger import Record

Detail = TypeVar("Detail", bound=Mapping[str, object])
Outputs = TypeVar("Outputs", bound=Mapping[str, object], default=Mapping[str, str])
Scores = TypeVar("Scores", bound=Mapping[str, object], default=Mapping[str, float])


@dataclass(frozen=True)
class Handover(Generic[Detail, Outputs, Scores]):
    """What the kept records of a step hold.

    Args:
        step: its name.
        Detail: TypedDict of `Record.detail`.
        Outputs: TypedDict of `Record.outputs`, role → sha256.
        Scores: TypedDict of `Record.scores`, metric → value.
    """

    step: str

    def record(self, of: Record | Mapping[str, Record]) -> Record:
        """The step's record. Raises KeyError when the lineage has none, ValueError for another step's record.

        Args:
            of: the record, or the records of an item's lineage by step.
        """
        record = of if isinstance(of, Record) else of[self.step]
        if record.step != self.step:
            raise ValueError(f"a record of {record.step} is no record of {self.step}")
        return record

    def detail(self, of: Record | Mapping[str, Record]) -> Detail:
        """Facts for later steps and for auditors. Arguments and errors as `record`."""
        return cast(Detail, self.record(of).detail)

    def outputs(self, of: Record | Mapping[str, Record]) -> Outputs:
        """Digests of the artifacts. Arguments and errors as `record`."""
        return cast(Outputs, self.record(of).outputs)

    def scores(self, of: Record | Mapping[str, Record]) -> Scores:
        """Measured values. Arguments and errors as `record`."""
        return cast(Scores, self.record(of).scores)
