"""Creation: a topic becomes a storyboard, its shots videos, the best of them one video that a person has to approve."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import ConfigDict, Field

from flows.flow_signature import subset
from flows.make_flow import Summary, make_flow
from flows.run_name import run_name
from medgen.errors import RunStopped
from medgen.ledger import Ledger, open_ledger
from medgen.shard import ShardResult
from models.generation.prompt_set import Prompt
from models.storyboards.storyboard import Storyboard
from tasks.creation.approve import finish
from tasks.creation.artifacts import show_creation
from tasks.creation.compose import ComposeParams
from tasks.creation.creation import content_of, put_on_record
from tasks.creation.credentials import CREDENTIALS
from tasks.creation.lay_out import Finished, file_name, lay_out
from tasks.creation.look_at_persons import PERSONS, PersonsDetail, persons_shard
from tasks.creation.on_record import Content, Creation, approval_of, creation_on_record
from tasks.creation.shots import Candidate, ShotParams, candidate, chosen, next_round, shot_prompts, training_releases
from tasks.creation.write_storyboard import StoryboardParams, read_storyboard, storyboard_shard
from tasks.creation.write_storyboard import step as storyboard_step
from tasks.evaluation import generate, measure_video
from tasks.evaluation.clip_descriptor import clip_descriptor_params, descriptor_shard, read_descriptors
from tasks.evaluation.generate import GENERATE, GenerateParams, Plan, generate_shard
from tasks.evaluation.measure_video import MeasureParams, measure_shard
from tasks.evaluation.measured import Measured, frame_counts, generated_videos, measured_videos
from tasks.evaluation.mllm_judge import MllmJudgeParams, mllm_judge_shard, video_score_shard
from tasks.evaluation.plan import check_metrics
from tasks.evaluation.resemblance import NearCopies, TrainingClip, near_copies
from tasks.training.model_files import ON_RECORD, models_on_record
from tasks.training.released import ReleasedClip, released_clips

T = TypeVar("T")


class CreateParameters(StoryboardParams, ShotParams, ComposeParams, MeasureParams, MllmJudgeParams, GenerateParams):
    """Everything that a creation can be told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        "",
        description="medgen:NAME of a model on record, a diffusers folder, or a hub name of a text-to-video model; "
        "empty: the newest on record.",
    )
    create_shard_size: int = Field(64, ge=1, le=10_000, exclude=True, description="Videos or clips per task run.")
    retry_quarantined: bool = Field(False, exclude=True, description="Try items again that failed for good.")


def _create(parameters: CreateParameters) -> Summary:
    """Storyboard, shots, scores, one video with titles, subtitles and content credentials. A person approves it."""
    ledger, log = open_ledger(), get_run_logger()
    making = _Making(ledger, parameters)
    storyboard, plan = making.storyboard(), making.plan
    releases = training_releases(plan, parameters.against)
    clips = {name: released_clips(ledger, name)[0] for name in releases}
    candidates, copies = making.candidates(shot_prompts(storyboard), clips)
    params, best = subset(parameters, ShotParams), chosen(candidates)
    persons = making.persons([best[place] for place in sorted(best) if storyboard.shots[place - 1].persona])
    judged = bool(parameters.judge_model)
    content = content_of(ledger, storyboard, plan, candidates, best, params, releases, copies, judged, persons)
    record, stood = put_on_record(
        ledger, content, making.parents(candidates), plan.digest if plan.version else None, flow_run_id=flow_run.id
    )
    creation = creation_on_record(ledger, record.subject)
    approval = approval_of(ledger, creation)
    finished = finish(ledger, creation, approval, flow_run_id=flow_run.id, parameters=subset(parameters, ComposeParams))
    folder = lay_out(ledger, creation, finished)
    summary = _summary(creation, content, finished, str(folder)) | {
        "executed": sum(shard.executed for shard in making.shards) + (not stood) + finished.executed,
        "reused": sum(shard.reused for shard in making.shards) + stood + finished.reused,
        "decodes": sum(shard.decodes for shard in making.shards),
    }
    show_creation(summary)
    log.info("executed %d, reused %d; %s lies in %s", summary["executed"], summary["reused"], creation.name, folder)
    if approval is None:
        log.info("it awaits approval: medgen creation approve %s --by NAME --tick all", creation.name)
    return summary


def _summary(creation: Creation, content: Content, finished: Finished, folder: str) -> Summary:
    name = file_name(creation, approved=finished.approval is not None)
    return {
        "creation": creation.name,
        "use": creation.storyboard.use,
        "topic": creation.storyboard.topic,
        "awaits_approval": finished.approval is None,
        "folder": folder,
        "video": f"{folder}/{name}.mp4",
        "subtitles": f"{folder}/{name}.vtt",
        "page": f"{folder}/index.html",
        "credentials": CREDENTIALS.detail(finished.signed)["state"],
        "step_run": creation.record.id,
        "statements": [statement["text"] for statement in content["statements"]],
        "shots": [
            {
                "place": row["place"],
                "title": row["title"],
                "videos": len(row["candidates"]),
                "score": row["chosen"]["score"] if row["chosen"] else None,
                "faults": row["chosen"]["faults"] if row["chosen"] else ["left_out"],
            }
            for row in content["shots"]
        ],
    }


class _Making:
    """The steps of one creation, and what ran of them.

    Attributes:
        plan: the model and its settings.
        shards: results of the tasks so far.
    """

    def __init__(self, ledger: Ledger, parameters: CreateParameters) -> None:
        """Finds every model. Raises RunStopped, ItemFailed, ModelUnavailable: one can't be had, before any work."""
        self._ledger, self._parameters = ledger, parameters
        self._measuring, self._judging = subset(parameters, MeasureParams), subset(parameters, MllmJudgeParams)
        self._again = parameters.retry_quarantined
        generation = subset(parameters, GenerateParams)
        if not generation.model:
            known = models_on_record(ledger)
            if not known:
                raise RunStopped("no model is on record: name one, or make one with `medgen train`")
            generation = generation.model_copy(update={"model": f"{ON_RECORD}{known[0].digest}"})
        self._generation = generation
        check_metrics(self._measuring, self._judging)
        storyboard_step(subset(parameters, StoryboardParams))
        self.plan: Plan = generate.plan(ledger, generation)
        self.shards: list[ShardResult] = []
        self._storyboard_run = 0
        self._copied: dict[str, NearCopies] = {}
        self._descriptors: dict[str, list[TrainingClip]] = {}
        self._clip_runs: list[int] = []
        self._person_runs: list[int] = []

    def storyboard(self) -> Storyboard:
        """The storyboard. Raises RunStopped with the reason when none was written."""
        params = subset(self._parameters, StoryboardParams)
        (run_id,) = self._done(storyboard_shard.submit(params.use, params, self._again).result()).records
        record = self._ledger.load([run_id])[run_id]
        if record.status != "kept":
            raise RunStopped(f"no storyboard: {record.reason}: {record.detail.get('message', '')}")
        self._storyboard_run = run_id
        return read_storyboard(self._ledger, record)

    def candidates(
        self, prompts: Mapping[int, Prompt], clips: Mapping[str, Sequence[ReleasedClip]]
    ) -> tuple[list[Candidate], list[NearCopies]]:
        """The videos of all rounds with what is wrong with them; and how near copies were told, for each release.

        Raises RunStopped: no video could be made.
        """
        params, each = subset(self._parameters, ShotParams), self._generation.videos_per_prompt
        found: list[Candidate] = []
        made = 0
        for attempt in range(params.shot_attempts):
            places = next_round(prompts, found, made, each, params)
            if not places:
                break
            made += each * len(places)
            measured = self._measured(
                [prompts[place] for place in places], self._generation.seed + attempt * each, clips
            )
            by_id = {prompts[place].id: place for place in places}
            found += [candidate(by_id[video.video.prompt_id], seed, video, params) for video, seed in measured]
        if not found:
            raise RunStopped("no shot could be made: see `medgen status` for the reasons")
        return sorted(found, key=lambda one: (one.shot, one.seed)), list(self._copied.values())

    def persons(self, shown: Sequence[Candidate]) -> dict[str, PersonsDetail]:
        """Subject of a video of a persona → what was seen of a person; nothing of one that can't be looked at."""
        videos = [one.measured.video for one in shown]
        futures = [persons_shard.submit(str(n), some, self._again) for n, some in self._numbered(videos)]
        ids = [run_id for future in futures for run_id in self._done(future.result()).records]
        self._person_runs = ids
        records = self._ledger.load(ids).values()
        return {record.subject: PERSONS.detail(record) for record in records if record.status == "kept"}

    def parents(self, candidates: Sequence[Candidate]) -> dict[str, int]:
        """Role → id of the records behind the creation."""
        roles = {"storyboard": self._storyboard_run}
        if self.plan.version and self.plan.version.step_run_id is not None:
            roles["model"] = self.plan.version.step_run_id
        for one in candidates:
            runs = dict.fromkeys(run for run in (one.measured.video.run_id, *one.measured.runs) if run is not None)
            roles |= {f"shot-{one.shot:04}-{one.seed}-{number}": run for number, run in enumerate(runs)}
        roles |= {f"person-{number:04}": run for number, run in enumerate(self._person_runs)}
        return roles | {f"clip-{number:05}": run for number, run in enumerate(sorted(set(self._clip_runs)))}

    def _measured(
        self, prompts: Sequence[Prompt], seed: int, clips: Mapping[str, Sequence[ReleasedClip]]
    ) -> list[tuple[Measured, int]]:
        """Videos of the prompts, measured, judged and compared with training clips; and their seeds."""
        params = self._generation.model_copy(update={"seed": seed})
        label = f"seed-{seed}"
        futures = [
            generate_shard.submit(f"{label}-{n}", some, params, self._again) for n, some in self._numbered(prompts)
        ]
        ids = [run_id for future in futures for run_id in self._done(future.result()).records]
        records = self._ledger.load(ids)
        videos, _ = generated_videos(self.plan.shown, [records[run_id] for run_id in ids])
        if not videos:
            return []
        measuring = [
            measure_shard.submit(f"{label}-{n}", some, self._measuring, self._again)
            for n, some in self._numbered(videos)
        ]
        runs: dict[str, Sequence[int | None]] = {
            measure_video.STEP: [run_id for future in measuring for run_id in self._done(future.result()).records]
        }
        frames = frame_counts(self._ledger, [run_id for run_id in runs[measure_video.STEP] if run_id is not None])
        judged = [(videos[place], count) for place, count in frames.items()]
        for name, task in (
            (self._judging.judge_model, mllm_judge_shard),
            (self._judging.video_score_model, video_score_shard),
        ):
            if name and judged:
                asked = [
                    task.submit(f"{label}-{n}", some, self._judging, self._again) for n, some in self._numbered(judged)
                ]
                answers = [run_id for future in asked for run_id in self._done(future.result()).records]
                by_place = dict(zip(frames, answers, strict=True))
                runs[task.name] = [by_place.get(place) for place in range(len(videos))]
        measured = measured_videos(self._ledger, videos, runs)
        seeds = {
            run_id: GENERATE.detail(record)["seed"] for run_id, record in records.items() if record.status == "kept"
        }
        return [(one, seeds[one.video.run_id or 0]) for one in self._compared(measured, clips)]

    def _compared(self, measured: list[Measured], clips: Mapping[str, Sequence[ReleasedClip]]) -> list[Measured]:
        """The videos with the training clip that each resembles most; a near copy of any release stays one."""
        for name, released in clips.items():
            if name not in self._descriptors:
                self._descriptors[name] = self._described(name, released, measured)
            if self._descriptors[name]:
                before = measured
                measured, self._copied[name] = near_copies(measured, self._descriptors[name])
                measured = [
                    old if old.nearest and old.nearest.near_copy else new
                    for old, new in zip(before, measured, strict=True)
                ]
        return measured

    def _described(
        self, name: str, released: Sequence[ReleasedClip], measured: Sequence[Measured]
    ) -> list[TrainingClip]:
        params = clip_descriptor_params([video.detail for video in measured if video.detail])
        futures = [
            descriptor_shard.submit(f"{name}-{n}", some, params, self._again) for n, some in self._numbered(released)
        ]
        ids = [run_id for future in futures for run_id in self._done(future.result()).records]
        self._clip_runs += ids
        found = read_descriptors(self._ledger, ids)
        return [
            TrainingClip(clip.clip_id, clip.video_id, clip.category, found[clip.clip_id])
            for clip in released
            if clip.clip_id in found
        ]

    def _done(self, shard: ShardResult) -> ShardResult:
        self.shards.append(shard)
        return shard

    def _numbered(self, items: Sequence[T]) -> Iterator[tuple[int, Sequence[T]]]:
        size = self._parameters.create_shard_size
        for number, start in enumerate(range(0, len(items), size), 1):
            yield number, items[start : start + size]


create = make_flow(
    _create,
    CreateParameters,
    "create",
    run_name("create", "use", "topic"),
    first=("use", "topic", "language", "model", "writer", "personas", "judge_model", "shot_attempts", "min_shot_score"),
)
PARAMETERS = CreateParameters
