"""Credentials: a composed video gets its C2PA content credentials, which name model, releases, prompts and approval."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from medgen.content_credentials import read_credentials, sign, signing
from medgen.errors import ItemFailed
from medgen.handover import Handover
from medgen.ledger import Ledger, Outcome, Record, StepIdentity, Work
from tasks.creation.compose import COMPOSE
from tasks.creation.on_record import Creation

STEP = "credentials"
VERSION = 1


class ApprovalFacts(TypedDict):
    """Who confirmed the statements."""

    by: str
    statements: int
    record: str


class CreationFacts(TypedDict):
    """What the content credentials say.

    Args:
        status: "approved" or "draft".
        releases: that the model learned from; prompts: of the shots that are shown, in order, with seed and sha256 of
            each one's video.
        content: sha256 of all that is on record of the creation.
    """

    creation: str
    status: str
    use: str
    topic: str
    language: str
    synthetic: bool
    model: dict[str, str]
    releases: list[dict[str, str]]
    shots: list[dict[str, Any]]
    writer: str
    content: str
    approval: NotRequired[ApprovalFacts]


class CredentialsDetail(TypedDict):
    """Detail of a kept record: what the credentials say, and how the library read them back."""

    facts: CreationFacts
    state: str
    issuer: str
    own_certificate: bool


class CredentialsOutputs(TypedDict):
    """Outputs of a kept record, role → sha256."""

    video: str


CREDENTIALS: Handover[CredentialsDetail, CredentialsOutputs] = Handover(STEP)


def sign_video(
    ledger: Ledger, creation: Creation, composed: Record, approval: ApprovalFacts | None, *, flow_run_id: str | None
) -> tuple[Record, bool]:
    """The record of the signed video, and whether it stood already. Output `video`.

    Signing draws a random number: the same video signed anew is another file. It is signed once for each certificate.

    Raises:
        CannotSign: as `medgen.content_credentials.signing`.
        ItemFailed: not_signed; bad_credentials when the library does not read back what it wrote.
    """
    store, ready = ledger.store, signing()
    facts = creation_facts(creation, approval)
    work = Work(
        creation.name,
        inputs={"video": COMPOSE.outputs(composed)["video"]},
        context={"facts": dict(facts)},
        parents={"compose": composed.id},
    )

    def made() -> Outcome:
        path = store.scratch(".mp4")
        board = creation.storyboard
        sign(store.path(work.inputs["video"]), path, ready, board.topic, facts["model"]["name"], facts)
        read = read_credentials(path)
        if read is None or read.state == "Invalid" or read.facts.get("content") != facts["content"]:
            problems = ", ".join(read.problems) if read else "there are none"
            raise ItemFailed("bad_credentials", f"{creation.name}: the content credentials don't hold: {problems}")
        detail: CredentialsDetail = {
            "facts": facts,
            "state": read.state,
            "issuer": read.issuer,
            "own_certificate": ready.own,
        }
        return Outcome("kept", detail=dict(detail), outputs={"video": store.put_file(path, "video/mp4")})

    with store.tidy():
        identity = StepIdentity(STEP, VERSION, {}, {"certificate": ready.digest})
        return ledger.once(identity, work, made, flow_run_id=flow_run_id)


def creation_facts(creation: Creation, approval: ApprovalFacts | None) -> CreationFacts:
    """What the content credentials of a creation say."""
    content, board = creation.content, creation.storyboard
    model: Mapping[str, Any] = content["model"]
    facts: CreationFacts = {
        "creation": creation.name, "status": "approved" if approval else "draft", "use": board.use,
        "topic": board.topic, "language": board.language, "synthetic": True,
        "model": {"name": model["name"], "digest": model["digest"]},
        "releases": [{"name": source["name"], "digest": source["digest"]} for source in content["sources"]],
        "shots": [
            {"prompt": row["prompt"], "seed": row["chosen"]["seed"], "sha256": row["chosen"]["sha256"]}
            for row in content["shots"] if row["chosen"]
        ],
        "writer": board.writer, "content": creation.record.outputs["content"],
    }  # fmt: skip
    return facts | {"approval": approval} if approval else facts
